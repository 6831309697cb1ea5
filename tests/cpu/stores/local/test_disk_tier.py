"""What only the disk tier meets: folders and files that others move, own or fill."""

import os
import subprocess
import sys

import pytest
from paths import TESTS
from small_chunks import file_bytes, small_chunk, small_disk_tier, small_kv

from legokv.errors import CacheUnavailable, ChunkUnreadable


def fill(tier, *numbers, namespace="default"):
    return [tier.write(small_chunk(number, namespace), small_kv(number)) for number in numbers]


def held(tier, namespace="default"):
    return [n for n in range(20) if tier.has(small_chunk(n, namespace).key)]


def assert_files_are_rows(tier):
    rows = {row.key: row.num_bytes for row in tier.stored.rows()}
    assert {file.key: file.num_bytes for file in tier.folder.files()} == rows


def test_a_folder_that_vanished_is_made_again(tmp_path):
    tier = small_disk_tier(tmp_path)
    fill(tier, 1)
    subprocess.run(["rm", "-r", tmp_path / "chunks"], check=True)
    with pytest.raises(ChunkUnreadable):
        tier.read(small_chunk(1))
    assert fill(tier, 1, 2) == [True, True]
    assert_files_are_rows(tier)


def test_who_is_pinned_is_asked_only_when_some_must_leave(tmp_path):
    asked = []

    def pinned():
        asked.append(None)
        return {small_chunk(1).key}

    tier = small_disk_tier(tmp_path, disk_bytes=2 * file_bytes(tmp_path), pinned=pinned)
    assert (fill(tier, 1, 2, 2), asked) == ([True] * 3, [])
    assert (fill(tier, 3), asked) == ([True], [None])
    assert held(tier) == [1, 3]
    assert_files_are_rows(tier)


def test_a_file_in_the_folder_s_place_is_an_error_that_names_it(tmp_path):
    (tmp_path / "chunks").write_text("in the way")
    with pytest.raises(CacheUnavailable, match=r"chunk .* of \d+ bytes was not stored: .*chunks"):
        fill(small_disk_tier(tmp_path), 1)


def run_elsewhere(code, *arguments, prefix=()):
    """Run code in a process of its own, which may be another user's or see another file system."""
    prelude = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    command = [*prefix, sys.executable, "-c", prelude + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


_WRITE = """
import os, sys
from pathlib import Path
from small_chunks import file_bytes, small_chunk, small_disk_tier, small_kv
from legokv.errors import CacheUnavailable
root = Path(sys.argv[1])
tier = small_disk_tier(root)
tier.write(small_chunk(1), small_kv(1))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_somebody_else_is_an_error_that_says_so(tmp_path):
    code = (
        _WRITE
        + """
for folder in (root / "chunks", *(root / "chunks").iterdir()):
    os.chmod(folder, 0o555)
for part in (root / "registry.sqlite", root / "registry.sqlite-wal", root / "registry.sqlite-shm"):
    os.chmod(part, 0o666)
os.chmod(root / "chunks.lock", 0o666)
os.chmod(root, 0o777)
for parent in root.parents:
    os.chmod(parent, os.stat(parent).st_mode | 0o111)
os.setuid(65534)
try:
    tier.write(small_chunk(99), small_kv(99))
except CacheUnavailable as error:
    print(error)
print(tier.stats().failed_writes, tier.has(small_chunk(1).key), tier.stats().num_chunks)
"""
    )
    (tmp_path / "root").mkdir()
    result = run_elsewhere(code, tmp_path / "root")
    assert "was not stored" in result.stdout, result.stderr
    assert "Permission denied" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 True 1"


def test_a_full_disk_is_an_error_that_says_so_and_leaves_whole_files(tmp_path):
    code = """
import contextlib, subprocess
from legokv.stores.local.repair import mend
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", sys.argv[1]], check=True)
""" + _WRITE.replace(
        "tier.write(small_chunk(1), small_kv(1))",
        """
import torch
kept, said = 0, ""
wide = torch.zeros(2, 2, 16, 1, 2048)
for number in range(200):
    try:
        kept += tier.write(small_chunk(number), wide)
    except CacheUnavailable as error:
        said = str(error)
        break
print(said)
whole = [file for file in tier.folder.files() if tier.folder.verify(file.key)]
print(kept > 10, len(whole) == kept, tier.folder.temporary_files(), tier.stats().failed_writes)
with contextlib.suppress(CacheUnavailable):  # noting that a file went needs some space, too
    tier.remove(whole[0].key)
mend(tier, lambda keys: {})
rows = {row.key: row.num_bytes for row in tier.stored.rows()}
print(rows == {file.key: file.num_bytes for file in tier.folder.files()}, kept - len(rows))
print(tier.write(small_chunk(0), small_kv(0)))
""",
    )
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small file system")
    result = run_elsewhere(code, tmp_path, prefix=namespace)
    assert result.returncode == 0, result.stderr
    said, state, mended, again = result.stdout.splitlines()[-4:]
    assert "No space left" in said or "disk is full" in said, (said, result.stderr)
    assert state == "True True [] 1", (state, result.stderr)
    assert (mended, again) == ("True 1", "True")


def test_documents_can_be_deleted_on_a_full_disk_and_make_room_for_others(tmp_path):
    code = """
import contextlib, subprocess
from pathlib import Path
from legokv.documents.document import NewDocument
from legokv.errors import CacheUnavailable
from legokv.stores.local.registry import Registry
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", sys.argv[1]], check=True)
registry = Registry.open(Path(sys.argv[1]) / "model" / "registry.sqlite")
def register(n):
    text = f"{n} " * 50_000
    return registry.register(NewDocument("default", text, ((n,),)), {}, 0)[0].id
ids = []
try:
    for n in range(1000):
        ids.append(register(n))
except CacheUnavailable as error:
    print(error)
with open(Path(sys.argv[1]) / "rest", "wb", buffering=0) as rest, contextlib.suppress(OSError):
    while True:
        rest.write(b"x" * 4096)
for document_id in ids:
    registry.delete("default", document_id)
print(len(ids), len(registry.page("default").documents))
print(register(2000) == registry.page("default").documents[0].id)
"""
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small file system")
    result = run_elsewhere("import sys\n" + code, tmp_path, prefix=namespace)
    assert result.returncode == 0, result.stderr
    said, counts, again = result.stdout.splitlines()
    assert "the disk is full" in said
    number, left = map(int, counts.split())
    assert number > 10
    assert (left, again) == (0, "True")

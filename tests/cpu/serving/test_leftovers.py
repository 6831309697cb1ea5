"""What a killed server left in the temporary folder goes with the next start, and nothing else."""

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from legokv.serving.triton.processes import keep_memory_private, server_folder

SERVER = """
import sys
from legokv.serving.triton.processes import server_folder
with server_folder() as folder:
    (folder / "python").mkdir()
    (folder / "python" / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""
Start = Callable[[], tuple["subprocess.Popen[str]", Path]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts processes that hold a server's folder in one temporary folder, this one's too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    started = []

    def begin() -> tuple["subprocess.Popen[str]", Path]:
        one = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(one)
        assert one.stdout is not None
        return one, Path(one.stdout.readline().strip())

    yield begin
    for one in started:
        one.communicate()


def test_a_folder_goes_with_its_server(start: Start, tmp_path: Path) -> None:
    with server_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.is_dir()
    server, other = start()
    server.communicate()
    assert not folder.exists()
    assert not other.exists()


def test_a_killed_server_s_folder_goes_with_the_next_start_and_a_live_one_s_stays(
    start: Start, tmp_path: Path
) -> None:
    (killed, left), (_, used) = start(), start()
    (tmp_path / "legokv-notes").mkdir()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left.is_dir()
    with server_folder() as own:
        assert {entry.name for entry in tmp_path.iterdir()} == {
            used.name,
            own.name,
            "legokv-notes",
        }
        assert (used / "python" / "file").is_file()


def test_a_live_server_s_folder_stays_though_its_number_means_nobody_here(start: Start) -> None:
    _, used = start()
    process = subprocess.Popen(["true"])
    process.wait()
    elsewhere = used.with_name(f"legokv-serve-{process.pid}-other")
    os.rename(used, elsewhere)
    with server_folder():
        assert (elsewhere / "python" / "file").is_file()
    os.rename(elsewhere, used)


def test_a_model_s_shared_memory_is_taken_from_other_users_and_nothing_else_is(
    tmp_path: Path,
) -> None:
    names = [f"legokv_{os.getpid()}_{uuid.uuid4()}", f"other_{uuid.uuid4()}"]
    files = [Path("/dev/shm", name) for name in names]
    try:
        for file in files:
            file.touch()
            file.chmod(0o644)
        (tmp_path / "maps").write_text(
            "55d0 r--p 0 0:1 1    /usr/bin/python3\n7f00 rw-p 0 0:0 0 \n"
            + "".join(f"7f01 rw-s 0 0:19 5      {file}\n" for file in files)
        )
        keep_memory_private(tmp_path / "maps")
        assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o644]
    finally:
        for file in files:
            file.unlink(missing_ok=True)

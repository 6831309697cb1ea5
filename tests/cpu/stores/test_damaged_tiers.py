"""Tiers that are damaged, lost, full or read-only while in use: slower, never wrong."""

import shutil
import subprocess
import sys

import pytest
import torch
from texts import random_ids
from tier_engines import (  # noqa: F401 - fixtures
    answer,
    files,
    open_engine_fixture,
    tier,
)

from legokv.chunks.header import STORED_DTYPES
from legokv.chunks.stored_form import encode_chunk

REGIONS = {
    "length of the header": lambda content: range(8),
    "header": lambda content: range(8, start_of_kv(content)),
    "first bytes of the KV": lambda content: range(start_of_kv(content), start_of_kv(content) + 64),
    "middle of the KV": lambda content: range(len(content) // 2, len(content) // 2 + 64),
    "last bytes of the KV": lambda content: range(len(content) - 64, len(content)),
}


def start_of_kv(content):
    return 8 + int.from_bytes(content[:8], "little")


def flipped(content, places, number):
    damaged = bytearray(content)
    for place in list(places)[:: max(1, len(places) // 4)][number : number + 1]:
        damaged[place] ^= 0x10
    return damaged


DAMAGES = {
    **{
        f"a bit of the {region} flipped ({number})": (
            lambda content, other, places=places, number=number: flipped(
                content, places(content), number
            )
        )
        for region, places in REGIONS.items()
        for number in range(4)
    },
    "cut in the header": lambda content, other: content[:20],
    "cut before the KV": lambda content, other: content[: start_of_kv(content)],
    "cut in the KV": lambda content, other: content[:-1],
    "emptied": lambda content, other: b"",
    "longer": lambda content, other: content + b"\0",
    "zeroed": lambda content, other: bytes(len(content)),
    "another chunk's": lambda content, other: other,
    "its header before another chunk's KV": lambda content, other: (
        content[: start_of_kv(content)] + other[start_of_kv(other) :]
    ),
}


@pytest.mark.parametrize("form", STORED_DTYPES)
def test_no_damage_to_a_stored_file_changes_an_answer(open_engine, form, record_property):
    first = open_engine(16 * 8, host_bytes=0, kv_stored_dtype=form)
    chunk, other = first.compile(random_ids(1)), first.compile(random_ids(2))
    expected = answer(first, [chunk, other]).logits
    path, second = (first.tiers.tiers[0].folder.path(key) for key in (chunk.key, other.key))
    sound = path.read_bytes()
    wrong = 0
    for name, damage in DAMAGES.items():
        path.write_bytes(damage(sound, second.read_bytes()))
        first.cache.drop(chunk.key)  # from the pool alone, as eviction does
        result = answer(first, [chunk, other])
        wrong += not torch.equal(result.logits, expected)
        assert result.usage.compiled_tokens in (0, 40), name
        assert path.read_bytes() == sound or result.usage.compiled_tokens == 0, name
        path.write_bytes(sound)
    record_property("fact", f"{form}: {len(DAMAGES)} files damaged, {wrong} wrong answers")
    assert wrong == 0
    failed = tier(first, "disk").failed_reads
    assert sum(failed.values()) >= len(DAMAGES) - 4
    assert failed.keys() == {"length", "header", "identity", "checksum"}


def with_number(kv, value):
    changed = kv.clone()
    changed[1, 1, 7, 0, 3] = value
    return changed


# Whole files with a right checksum, as an archive or another program may bring them.
FOREIGN_KV = {
    "NaN": lambda kv: with_number(kv, float("nan")),
    "infinity": lambda kv: with_number(kv, float("-inf")),
    "a layer too many": lambda kv: kv[[0, *range(len(kv))]],
    "one layer": lambda kv: kv[:1],
    "a head too few": lambda kv: kv[:, :, :, :1],
    "wider heads": lambda kv: kv.repeat(1, 1, 1, 1, 2),
    "another type": lambda kv: kv.half(),
}


@pytest.mark.parametrize("foreign", FOREIGN_KV)
def test_a_whole_file_that_is_not_this_model_s_kv_is_compiled_and_written_again(
    open_engine, foreign
):
    engine = open_engine(16 * 8, host_bytes=0)
    chunk = engine.compile(random_ids(1))
    expected = answer(engine, [chunk]).logits
    path = engine.tiers.tiers[0].folder.path(chunk.key)
    sound = path.read_bytes()
    wrong = encode_chunk(
        chunk.key, chunk.token_ids, FOREIGN_KV[foreign](engine.tiers.tiers[0].read(chunk))
    )
    path.write_bytes(wrong.header + wrong.data)
    for compiled_tokens in (40, 0):
        engine.cache.drop(chunk.key)
        running = engine.generate([[7, 8]], max_tokens=6)
        assert next(running).finish_reason is None
        result = answer(engine, [chunk])
        # Float32's products beside another row differ in their last bits.
        torch.testing.assert_close(result.logits, expected, atol=1e-4, rtol=0)
        assert result.usage.compiled_tokens == compiled_tokens
        assert len(list(running)) == 5
    assert path.read_bytes() == sound


def test_two_files_that_changed_places_change_no_answer(open_engine):
    engine = open_engine(16 * 8, host_bytes=0)
    chunks = [engine.compile(random_ids(1)), engine.compile(random_ids(2))]
    expected = answer(engine, chunks).logits
    one, two = (engine.tiers.tiers[0].folder.path(chunk.key) for chunk in chunks)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    for chunk in chunks:
        engine.cache.drop(chunk.key)
    result = answer(engine, chunks)
    assert torch.equal(result.logits, expected)
    assert result.usage.compiled_tokens == 80


def test_a_chunk_folder_lost_while_serving_makes_answers_slower_not_wrong(open_engine, tmp_path):
    engine = open_engine(16 * 8, host_bytes=0)
    chunks = [engine.compile(random_ids(1)), engine.compile(random_ids(2))]
    expected = answer(engine, chunks).logits
    for folder in tmp_path.glob("*/chunks"):
        shutil.rmtree(folder)
    for chunk in chunks:
        engine.cache.drop(chunk.key)
    result = answer(engine, chunks)
    assert (torch.equal(result.logits, expected), result.usage.compiled_tokens) == (True, 80)
    assert len(files(tmp_path)) == 2


IN_A_SMALL_FILE_SYSTEM = """
import subprocess, sys
folder, mount, size = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=True)
import numpy as np, torch
from legokv import Engine, EngineSettings
def ids(seed):
    return np.random.Generator(np.random.PCG64(seed)).integers(3, 384, 120)
big = Engine.open(folder, settings=EngineSettings(pool_tokens=8192, attention="torch"))
few = EngineSettings(pool_tokens=256, host_bytes=0, cache_dir=mount, attention="torch")
small = Engine.open(folder, settings=few)
def wrong(numbers):
    return sum(
        not torch.equal(
            small.prefill([small.compile(ids(n)), [5, 6]]).logits,
            big.prefill([big.compile(ids(n)), [5, 6]]).logits,
        )
        for n in numbers
    )
"""


def run_in_a_small_file_system(folder, mount, size, code):
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small file system")
    return subprocess.run(
        [*namespace, sys.executable, "-c", IN_A_SMALL_FILE_SYSTEM + code, folder, mount, size],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_folder_that_became_read_only_makes_answers_slower_not_wrong(
    tiny_engine_folder, tmp_path
):
    code = """
before = wrong(range(3))
# Over it: what SQLite has open keeps the mount itself from becoming read-only.
subprocess.run(["mount", "--bind", mount, mount], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", mount], check=True)
after = wrong([*range(6), *range(6)])
disk = small.cache_stats()[-1]
print(before, after, disk.failed_writes > 0, disk.num_chunks, disk.hits > 0)
"""
    result = run_in_a_small_file_system(tiny_engine_folder(), tmp_path, "64m", code)
    assert result.stdout.split() == ["0", "0", "True", "3", "True"], result.stderr
    assert "Read-only file system" in result.stderr


def test_a_full_disk_makes_answers_slower_not_wrong(tiny_engine_folder, tmp_path):
    code = """
number = wrong([*range(20), *range(20)])
disk = small.cache_stats()[-1]
print(number, disk.failed_writes > 0, 0 < disk.num_chunks < 20)
"""
    result = run_in_a_small_file_system(tiny_engine_folder(), tmp_path, "1m", code)
    assert result.stdout.split() == ["0", "True", "True"], result.stderr
    assert "No space left" in result.stderr or "disk is full" in result.stderr

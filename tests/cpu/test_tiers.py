"""An engine over its tiers: where chunks go, whence they come, and that answers never change."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from legokv import Engine
from legokv.chunks.stored_kv import STORED_DTYPES
from legokv.request import GenerateRequest
from legokv.runners.open_runner import open_runner

TESTS = Path(__file__).resolve().parent.parent


def random_ids(seed, length=40):
    return np.random.Generator(np.random.PCG64(seed)).integers(3, 384, length)


@pytest.fixture
def open_engine(tiny_engine_folder, tmp_path):
    def opened(pool_tokens=1024, **settings):
        settings.setdefault("cache_dir", tmp_path)
        return Engine.open(
            tiny_engine_folder(), pool_tokens=pool_tokens, attention="torch", **settings
        )

    return opened


def tier(engine, name):
    return {stats.tier: stats for stats in engine.cache_stats()}[name]


def answer(engine, chunks):
    return engine.prefill([*chunks, [5, 6]])


def files(tmp_path):
    return sorted(tmp_path.rglob("*.safetensors"))


def test_what_leaves_the_pool_goes_to_host_memory_and_comes_back_the_same(open_engine):
    engine = open_engine(16 * 10, cache_dir=None)
    a, b = engine.compile(random_ids(1)), engine.compile(random_ids(2))
    expected = answer(engine, [a, b])
    engine.compile(random_ids(3, 70))
    assert engine.cache.find(a.key) is None
    again = answer(engine, [a, b])
    assert again.usage.compiled_tokens == 0
    assert torch.equal(again.logits, expected.logits)
    assert (tier(engine, "pool").evictions["budget"], tier(engine, "host").hits) >= (1, 1)


@pytest.mark.parametrize(
    ("marks", "held", "left"), [((1.0, 0.5), 3, 4), ((0.5, 0.25), 1, 6), ((1.0, 1.0), 6, 1)]
)
def test_a_pool_past_its_high_watermark_evicts_down_to_its_low_one(open_engine, marks, held, left):
    high, low = marks
    engine = open_engine(16 * 20, cache_dir=None, high_watermark=high, low_watermark=low)
    for number in range(7):  # 3 of 20 pages each
        engine.compile(random_ids(number, 48))
    pool = tier(engine, "pool")
    assert (pool.num_chunks, dict(pool.evictions)) == (held, {"budget": left})


def test_what_left_pool_and_host_comes_back_from_disk(open_engine):
    engine = open_engine(16 * 10, host_bytes=0)
    a, b = engine.compile(random_ids(1)), engine.compile(random_ids(2))
    expected = answer(engine, [a, b]).logits
    engine.compile(random_ids(3, 70))
    again = answer(engine, [a, b])
    assert again.usage.compiled_tokens == 0
    assert torch.equal(again.logits, expected)
    assert tier(engine, "disk").hits >= 1


def test_a_chunk_that_shall_leave_no_file_leaves_none_but_stays_in_host_memory(
    open_engine, tmp_path
):
    engine = open_engine(16 * 10)
    chunk = engine.compile(random_ids(1), persistent=False)
    engine.compile(random_ids(2, 150), persistent=False)
    assert engine.cache.find(chunk.key) is None
    assert answer(engine, [chunk]).usage.compiled_tokens == 0
    assert files(tmp_path) == []


@pytest.mark.parametrize(("device", "pinned"), [("cuda", 1), ("cpu", 0)])
def test_host_memory_is_pinned_where_the_runner_is_on_a_gpu(
    open_engine, monkeypatch, device, pinned
):
    # On a CPU: a runner that says where it is, and torch's own call counted, stand in for a GPU.
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda kv: calls.append(kv.shape) or kv)

    def opened(*arguments):
        runner = open_runner(*arguments)
        runner.device = torch.device(device)
        return runner

    monkeypatch.setattr("legokv.engine_parts.open_runner", opened)
    engine = open_engine(16 * 10, cache_dir=None)
    engine.compile(random_ids(1))
    engine.compile(random_ids(2, 150))
    assert tier(engine, "host").num_chunks == 1
    assert len(calls) == pinned


def test_a_waiting_request_s_chunks_are_fetched_before_it_is_admitted(open_engine):
    ids = [random_ids(n) for n in range(4)]
    first = open_engine()
    expected = answer(first, [first.compile(i) for i in ids]).logits
    second = open_engine()
    job = second.submit(GenerateRequest([*map(second.chunk, ids), [5, 6]], 0))
    fetching = job.prefetch
    fetching.wait()
    assert (tier(second, "disk").hits, tier(second, "host").num_chunks) == (4, 4)
    assert tier(second, "disk").num_leases == tier(second, "host").num_leases == 4
    (result,) = second.results(job)
    assert torch.equal(result.logits, expected)
    assert (result.usage.compiled_tokens, tier(second, "disk").hits) == (0, 4)
    wait_until(lambda: tier(second, "disk").num_leases == tier(second, "host").num_leases == 0)
    assert fetching.done


def test_a_cancelled_waiting_request_leases_nothing(open_engine):
    first = open_engine()
    first.compile(random_ids(1))
    second = open_engine()
    job = second.submit(GenerateRequest([second.chunk(random_ids(1)), [5, 6]], 4))
    fetching = job.prefetch
    fetching.wait()
    second.cancel(job)
    second.step()
    wait_until(lambda: tier(second, "disk").num_leases == 0)
    assert fetching.done


def test_an_admitted_request_s_leases_on_stored_chunks_end_before_its_answer(open_engine):
    first = open_engine()
    first.compile(random_ids(1))
    second = open_engine()
    job = second.submit(GenerateRequest([second.chunk(random_ids(1)), [5, 6]], 40))
    fetching = job.prefetch
    second.step()
    wait_until(lambda: tier(second, "disk").num_leases == 0)
    assert fetching.done
    assert second.cache.num_leases == 1
    second.cancel(job)


def wait_until(holds, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.01)


def test_running_answers_go_on_while_a_request_s_chunks_are_fetched(open_engine):
    first = open_engine()
    chunk = first.compile(random_ids(1))
    second = open_engine()
    running = second.submit(GenerateRequest([[5, 6]], 30))
    second.step()
    waiting = second.submit(GenerateRequest([chunk, [7]], 2))
    alone = [t.id for t in open_engine(cache_dir=None).generate([[5, 6]], max_tokens=30)]
    assert [e.id for e in second.results(running) if hasattr(e, "id")] == alone
    assert sum(hasattr(e, "id") for e in second.results(waiting)) == 2


def test_a_dropped_chunk_is_gone_from_every_tier(open_engine, tmp_path):
    engine = open_engine(16 * 10)
    chunk = engine.compile(random_ids(1))
    engine.compile(random_ids(2, 150))
    engine.drop(chunk.key)
    assert len(files(tmp_path)) == 1
    assert answer(engine, [chunk]).usage.compiled_tokens == 40


def test_a_chunk_in_the_pool_is_not_the_first_to_leave_the_disk(open_engine, tmp_path):
    size = one_file_bytes(open_engine, tmp_path)
    engine = open_engine(disk_bytes=2 * size, low_watermark=1.0)
    hot, cold = engine.compile(random_ids(1)), engine.compile(random_ids(2))
    answer(engine, [hot])
    engine.compile(random_ids(3))
    assert hot.key in {file.stem for file in files(tmp_path)}
    assert cold.key not in {file.stem for file in files(tmp_path)}


def one_file_bytes(open_engine, tmp_path):
    engine = open_engine(cache_dir=tmp_path / "measured")
    engine.compile(random_ids(1))
    size = tier(engine, "disk").num_bytes
    shutil.rmtree(tmp_path / "measured")
    return size


def test_a_working_set_larger_than_every_tier_is_answered_right(open_engine, tmp_path):
    size = one_file_bytes(open_engine, tmp_path)
    big = open_engine(8192, cache_dir=None)
    small = open_engine(16 * 14, host_bytes=2 * size, disk_bytes=3 * size)
    order = np.random.Generator(np.random.PCG64(5))
    for _ in range(30):
        ids = [random_ids(n) for n in order.choice(8, 3, replace=False)]
        expected = answer(big, [big.chunk(i) for i in ids]).logits
        assert torch.equal(answer(small, [small.chunk(i) for i in ids]).logits, expected)
    for name in ("pool", "host", "disk"):
        stats = tier(small, name)
        assert stats.num_bytes <= stats.max_bytes
        assert stats.evictions["budget"] > 0


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
from legokv import Engine
def ids(seed):
    return np.random.Generator(np.random.PCG64(seed)).integers(3, 384, 120)
big = Engine.open(folder, pool_tokens=8192, attention="torch")
small = Engine.open(folder, pool_tokens=256, host_bytes=0, cache_dir=mount, attention="torch")
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

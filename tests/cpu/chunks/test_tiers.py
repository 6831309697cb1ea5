"""An engine over its tiers: where chunks go, whence they come, and that answers never change."""

import shutil

import numpy as np
import pytest
import torch
from texts import random_ids
from tier_engines import (  # noqa: F401 - fixtures
    answer,
    files,
    open_engine_fixture,
    tier,
)

from legokv.runners.opening import open_runner


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
    ("marks", "held", "left"), [((100, 50), 3, 4), ((50, 25), 1, 6), ((100, 100), 6, 1)]
)
def test_a_pool_past_its_high_watermark_evicts_down_to_its_low_one(open_engine, marks, held, left):
    high, low = marks
    percents = {"high_watermark_percent": high, "low_watermark_percent": low}
    engine = open_engine(16 * 20, cache_dir=None, **percents)
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

    monkeypatch.setattr("legokv.engine.parts.open_runner", opened)
    engine = open_engine(16 * 10, cache_dir=None)
    engine.compile(random_ids(1))
    engine.compile(random_ids(2, 150))
    assert tier(engine, "host").num_chunks == 1
    assert len(calls) == pinned


def test_a_dropped_chunk_is_gone_from_every_tier(open_engine, tmp_path):
    engine = open_engine(16 * 10)
    chunk = engine.compile(random_ids(1))
    engine.compile(random_ids(2, 150))
    engine.drop(chunk.key)
    assert len(files(tmp_path)) == 1
    assert answer(engine, [chunk]).usage.compiled_tokens == 40


def test_a_chunk_in_the_pool_is_not_the_first_to_leave_the_disk(open_engine, tmp_path):
    size = one_file_bytes(open_engine, tmp_path)
    engine = open_engine(disk_bytes=2 * size, low_watermark_percent=100)
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

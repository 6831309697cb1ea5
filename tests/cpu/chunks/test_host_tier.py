import pytest
import torch
from fakes import Clock
from small_chunks import KV_BYTES, small_chunk, small_kv

from legokv.chunks.budget import Budget
from legokv.chunks.host_tier import HostTier
from legokv.chunks.tiers import LowerTiers
from legokv.errors import CacheUnavailable, ChunkUnreadable


def tier(num_chunks, *, low=1.0, pinned=frozenset, clock=None):
    return HostTier(
        Budget(num_chunks * KV_BYTES, low=low),
        pinned,
        **({} if clock is None else {"clock": clock}),
    )


def fill(host, *numbers):
    return [host.write(small_chunk(number), small_kv(number)) for number in numbers]


def held(host, count=20):
    return [number for number in range(count) if host.has(small_chunk(number).key)]


def test_kv_comes_back_as_it_was_given():
    host = tier(2)
    fill(host, 1)
    assert torch.equal(host.read(small_chunk(1)), small_kv(1))


def test_a_chunk_that_is_not_there_is_unreadable_and_counted_as_a_miss():
    host = tier(2)
    with pytest.raises(ChunkUnreadable, match="not in host memory"):
        host.read(small_chunk(1))
    assert (host.stats().misses, host.stats().hits) == (1, 0)


def test_the_least_recently_used_leaves_first():
    host = tier(3)
    fill(host, 1, 2, 3)
    host.read(small_chunk(1))
    host.touch([small_chunk(2).key])
    fill(host, 4)
    assert held(host) == [1, 2, 4]
    fill(host, 5)
    assert held(host) == [2, 4, 5]


def test_a_full_tier_evicts_down_to_its_low_watermark():
    host = tier(10, low=0.5)
    fill(host, *range(10))
    assert len(held(host)) == 10
    fill(host, 10)
    assert held(host) == [6, 7, 8, 9, 10]
    assert host.stats().evictions == {"budget": 6}


def test_a_leased_chunk_stays_until_it_is_released():
    host = tier(2)
    fill(host, 1, 2)
    host.lease("reader", [small_chunk(1).key], 60.0)
    fill(host, 3)
    assert held(host) == [1, 3]
    host.release("reader")
    fill(host, 4)
    assert held(host) == [3, 4]


def test_a_lease_ends_at_its_deadline_though_nobody_released_it():
    clock = Clock(100.0)
    host = tier(1, clock=clock)
    fill(host, 1)
    host.lease("gone", [small_chunk(1).key], 60.0)
    assert fill(host, 2) == [False]
    clock.seconds += 60
    assert fill(host, 2) == [True]
    assert host.stats().num_leases == 0


def test_a_pinned_chunk_stays():
    host = tier(2, pinned=lambda: {small_chunk(1).key})
    fill(host, 1, 2, 3)
    assert held(host) == [1, 3]


def test_a_chunk_for_which_nobody_may_leave_is_refused_and_nobody_leaves():
    host = tier(2, pinned=lambda: {small_chunk(1).key, small_chunk(2).key})
    fill(host, 1, 2)
    assert fill(host, 3) == [False]
    assert held(host) == [1, 2]
    assert host.stats().refused == 1


def test_memory_that_cannot_be_pinned_is_an_error_that_the_tiers_go_on_without(monkeypatch):
    # Stands in for a driver that has no more of it: a CPU pins nothing.
    def refused(kv):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    host = HostTier(Budget(2 * KV_BYTES), pin_memory=True)
    with pytest.raises(CacheUnavailable, match=f"{KV_BYTES} bytes were not pinned: CUDA error"):
        fill(host, 1)
    assert (host.stats().failed_writes, host.stats().num_bytes) == (1, 0)
    LowerTiers([host]).keep_evicted(small_chunk(1), small_kv(1))
    assert held(host) == []


def test_counts_that_were_given_out_do_not_change():
    host = tier(1)
    fill(host, 1, 2)
    before = host.stats()
    fill(host, 3)
    assert (before.evictions, host.stats().evictions) == ({"budget": 1}, {"budget": 2})
    with pytest.raises(TypeError):
        before.evictions["budget"] = 0


def test_a_chunk_larger_than_the_tier_evicts_nobody():
    host = HostTier(Budget(KV_BYTES))
    fill(host, 1)
    assert not host.write(small_chunk(2), torch.zeros(2, 2, 17, 1, 8))
    assert held(host) == [1]


def test_a_chunk_written_again_is_counted_once():
    host = tier(2)
    fill(host, 1, 1, 1)
    assert (host.stats().num_chunks, host.stats().num_bytes) == (1, KV_BYTES)
    host.remove(small_chunk(1).key)
    assert (host.stats().num_chunks, host.stats().num_bytes) == (0, 0)

"""The tiers below the pool as one: where a chunk is looked for, and where it is kept."""

import pytest
import torch
from fake_runner import DurableTier
from small_chunks import KV_BYTES, small_chunk, small_kv

from legokv.chunks.budget import Budget
from legokv.chunks.host_tier import HostTier
from legokv.chunks.tiers import LowerTiers
from legokv.errors import Busy, CacheUnavailable, ChunkUnreadable, StillUnavailable

ONE = small_chunk(1)


class SlowTier(DurableTier):
    name = "remote"


@pytest.fixture
def three():
    return HostTier(budget()), DurableTier(budget()), SlowTier(budget())


@pytest.fixture
def tiers(three):
    return LowerTiers(three)


def budget():
    return Budget(4 * KV_BYTES)


def having(tiers, chunk=ONE):
    return [tier.name for tier in tiers.tiers if tier.has(chunk.key)]


def test_a_chunk_is_read_from_the_fastest_that_has_it_and_put_into_those_before_it(tiers, three):
    host, disk, remote = three
    remote.write(ONE, small_kv(1))
    assert torch.equal(tiers.read(ONE), small_kv(1))
    assert having(tiers) == ["host", "disk", "remote"]
    tiers.read(ONE)
    assert (host.stats().hits, disk.stats().hits, remote.stats().hits) == (1, 0, 1)
    assert tiers.read(small_chunk(2)) is None


def test_a_damaged_copy_is_removed_and_the_next_tier_asked(tiers, three, monkeypatch, caplog):
    host, disk, remote = three
    for tier in three:
        tier.write(ONE, small_kv(1))

    def unreadable(chunk):
        raise ChunkUnreadable("a bit fell over", "checksum")

    monkeypatch.setattr(host, "read", unreadable)
    assert torch.equal(tiers.read(ONE), small_kv(1))
    assert (disk.stats().hits, remote.stats().hits) == (1, 0)
    assert host.stats().evictions == {"dropped": 1}
    assert "a chunk is compiled or fetched again: a bit fell over" in caplog.text
    disk.discard(ONE.key)
    remote.discard(ONE.key)
    assert tiers.read(ONE) is None


def test_a_compiled_chunk_is_kept_in_every_durable_tier_that_lacks_it(tiers, three):
    _, disk, remote = three
    assert tiers.lacking(ONE) == [disk, remote]
    assert not tiers.is_kept(ONE)
    tiers.keep(ONE, small_kv(1), tiers.lacking(ONE))
    assert having(tiers) == ["disk", "remote"]
    assert tiers.is_kept(ONE)
    disk.remove(ONE.key)
    # One durable tier lacks it: what shall be done is not done.
    assert tiers.lacking(ONE) == [disk]
    assert not tiers.is_kept(ONE)
    tiers.keep(ONE, small_kv(1), tiers.lacking(ONE))
    assert (disk.stats().writes, remote.stats().writes) == (2, 1)


def test_a_chunk_that_shall_leave_no_file_is_kept_in_host_memory_alone(tiers):
    passing = small_chunk(1, persistent=False)
    assert tiers.lacking(passing) == []
    assert not tiers.is_kept(passing)
    assert tiers.takes_evicted(passing)
    tiers.keep_evicted(passing, small_kv(1))
    assert having(tiers, passing) == ["host"]
    assert not tiers.takes_evicted(passing)


def test_a_chunk_is_fetched_into_the_tier_that_is_named_or_a_faster_one(tiers, three):
    three[2].write(ONE, small_kv(1))
    assert tiers.fetchable(ONE)
    assert tiers.fetch_into("disk", ONE)
    assert having(tiers) == ["host", "disk", "remote"]
    assert not tiers.fetchable(ONE)
    assert not tiers.fetch_into("disk", small_chunk(2))
    assert not tiers.fetch_into("tape", ONE)


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (CacheUnavailable("no server"), "WARNING"),
        (Busy("locked"), "WARNING"),
        (StillUnavailable("no server"), "DEBUG"),
    ],
)
def test_a_tier_that_cannot_be_used_is_passed_over(tiers, three, monkeypatch, caplog, error, level):
    def fail(*_):
        raise error

    caplog.set_level("DEBUG")
    for name in ("has", "read", "write", "remove", "touch", "lease", "release"):
        monkeypatch.setattr(three[1], name, fail)
    three[2].write(ONE, small_kv(1))
    with tiers.leased([ONE.key]):
        assert torch.equal(tiers.read(ONE), small_kv(1))
        tiers.touch([ONE.key])
    tiers.remove(ONE.key)
    assert not any(tier.stats().num_chunks for tier in three)
    assert {record.levelname for record in caplog.records} == {level}
    assert f"going on without the disk tier: {error}" in caplog.text


def test_leases_are_taken_in_every_tier_and_end_with_the_block(tiers, three):
    for tier in three:
        tier.write(ONE, small_kv(1))
    with tiers.leased([ONE.key]):
        assert [tier.stats().num_leases for tier in three] == [1, 1, 1]
    assert [tier.stats().num_leases for tier in three] == [0, 0, 0]

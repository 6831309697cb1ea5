"""A tier that is changed beside its callers: nobody waits, and nothing is missed meanwhile."""

import logging
import threading
import time

import pytest
import torch
from fake_runner import DurableTier
from small_chunks import KV_BYTES, small_chunk, small_kv

from legokv.chunks.budget import Budget
from legokv.chunks.write_behind import WriteBehind
from legokv.errors import Busy, ChunkUnreadable

ONE, TWO = small_chunk(1), small_chunk(2)


class SlowTier(DurableTier):
    """Each change waits until `go` is set; `made` says in which order and thread they came."""

    def __init__(self):
        super().__init__(Budget(100 * KV_BYTES))
        self.go, self.made = threading.Event(), []

    def _wait(self, *change):
        assert self.go.wait(120)
        self.made.append((*change, threading.current_thread().name))

    def write(self, chunk, kv):
        self._wait("write", chunk.key)
        return super().write(chunk, kv)

    def remove(self, key):
        self._wait("remove", key)
        super().remove(key)

    def lease(self, holder, keys, seconds):
        self._wait("lease", holder)

    def release(self, holder):
        self._wait("release", holder)


@pytest.fixture(name="slow")
def slow_fixture():
    tier = SlowTier()
    yield tier
    tier.go.set()


def test_who_writes_does_not_wait_and_what_is_not_yet_written_is_found(slow):
    tier = WriteBehind(slow)
    started = time.monotonic()
    assert tier.write(ONE, small_kv(1))
    tier.lease("holder", [ONE.key], 60.0)
    tier.release("holder")
    assert time.monotonic() - started < 60
    assert (tier.has(ONE.key), tier.is_coming(ONE.key), slow.has(ONE.key)) == (True, True, False)
    assert torch.equal(tier.read(ONE), small_kv(1))
    assert not tier.flush(0.05)
    slow.go.set()
    assert tier.flush(60)
    assert (tier.is_coming(ONE.key), slow.has(ONE.key)) == (False, True)
    assert torch.equal(tier.read(ONE), small_kv(1))
    assert slow.made == [
        ("write", ONE.key, "disk writer"),
        ("lease", "holder", "disk writer"),
        ("release", "holder", "disk writer"),
    ]


def test_what_is_to_be_removed_is_gone_at_once_and_may_be_written_again(slow):
    slow.go.set()
    tier = WriteBehind(slow)
    tier.write(ONE, small_kv(1))
    tier.flush()
    slow.go.clear()
    tier.remove(ONE.key)
    assert (tier.has(ONE.key), slow.has(ONE.key)) == (False, True)
    with pytest.raises(ChunkUnreadable):
        tier.read(ONE)
    tier.write(ONE, small_kv(3))
    assert torch.equal(tier.read(ONE), small_kv(3))
    slow.go.set()
    tier.flush()
    assert torch.equal(tier.read(ONE), small_kv(3))


def test_a_chunk_that_the_tier_has_by_then_is_not_written_again(slow):
    tier = WriteBehind(slow)
    tier.write(ONE, small_kv(1))
    tier.write(ONE, small_kv(1))
    slow.go.set()
    tier.flush()
    assert [change[0] for change in slow.made] == ["write"]


def test_more_than_may_wait_is_left_out_and_said_but_not_for_one_who_will_wait(slow, caplog):
    tier = WriteBehind(slow, max_bytes=KV_BYTES)
    assert tier.write(ONE, small_kv(1))
    assert not tier.write(TWO, small_kv(2))
    assert not tier.has(TWO.key)
    assert f"of {KV_BYTES} bytes is not kept: {KV_BYTES} bytes wait for the disk" in caplog.text
    tier.write_surely(TWO, small_kv(2))
    assert tier.has(TWO.key)
    slow.go.set()
    tier.flush()
    assert tier.write(small_chunk(3), small_kv(3))


def test_a_chunk_larger_than_all_that_may_wait_is_written_alone(slow):
    tier = WriteBehind(slow, max_bytes=1)
    assert tier.write(ONE, small_kv(1))
    assert not tier.write(TWO, small_kv(2))


@pytest.mark.parametrize("error", [Busy("it is locked"), RuntimeError("a bug")])
def test_a_change_that_fails_is_said_and_the_next_one_is_made(slow, monkeypatch, caplog, error):
    slow.go.set()
    tier = WriteBehind(slow)

    def failing(key):
        raise error

    monkeypatch.setattr(slow, "remove", failing)
    with caplog.at_level(logging.WARNING):
        tier.remove(TWO.key)
        tier.write(ONE, small_kv(1))
        assert tier.flush(10)
    assert str(error) in caplog.text
    assert slow.has(ONE.key)

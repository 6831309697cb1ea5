"""What disk and remote tier both promise: what stays, what leaves, and who may take it away."""

import pytest
import torch
from fakes import Clock
from small_chunks import small_chunk, small_kv
from stores import STORED_BYTES, DiskStore, RemoteStore, pin

from legokv.chunks.stored_form import encode_chunk
from legokv.errors import ChunkUnreadable


@pytest.fixture
def clock():
    return Clock(100_000.0)


@pytest.fixture(params=["disk", "remote"])
def store(request, tmp_path, clock):
    if request.param == "disk":
        return DiskStore(tmp_path, clock)
    return RemoteStore(request.getfixturevalue("redis_url"), clock)


def fill(tier, *numbers, namespace="default"):
    return [tier.write(small_chunk(number, namespace), small_kv(number)) for number in numbers]


def held(tier, namespace="default"):
    return [n for n in range(20) if tier.has(small_chunk(n, namespace).key)]


def assert_whole(store, tier):
    """What is stored is what is noted, to the byte."""
    stored = store.stored(tier)
    assert stored == store.noted(tier)
    assert (tier.stats().num_chunks, tier.stats().num_bytes) == (len(stored), sum(stored.values()))


def test_kv_comes_back_from_another_process_s_tier(store):
    assert fill(store.tier(), 1) == [True]
    assert torch.equal(store.tier().read(small_chunk(1)), small_kv(1))


def test_a_chunk_that_is_not_there_is_unreadable_and_counted_as_a_miss(store):
    tier = store.tier()
    with pytest.raises(ChunkUnreadable, match="is not "):
        tier.read(small_chunk(1))
    assert (tier.stats().misses, tier.stats().hits, tier.stats().failed_reads) == (1, 0, {})


def test_the_least_recently_used_leaves_first_whoever_used_it(store):
    one, other = store.tier(3 * STORED_BYTES), store.tier(3 * STORED_BYTES)
    fill(one, 1, 2, 3)
    other.read(small_chunk(1))
    fill(other, 4)
    assert held(one) == [1, 3, 4]
    one.touch([small_chunk(3).key])
    fill(one, 5)
    assert held(one) == [3, 4, 5]
    assert_whole(store, one)


def test_the_order_of_use_does_not_depend_on_the_clock(store, clock):
    tier = store.tier(2 * STORED_BYTES)
    fill(tier, 1)
    clock.seconds -= 50_000
    fill(tier, 2, 3)
    assert held(tier) == [2, 3]


def test_a_full_tier_evicts_down_to_its_low_watermark(store):
    tier = store.tier(10 * STORED_BYTES, low=0.5)
    fill(tier, *range(10))
    assert len(held(tier)) == 10
    fill(tier, 10)
    assert held(tier) == [6, 7, 8, 9, 10]
    assert tier.stats().evictions == {"budget": 6}
    assert_whole(store, tier)


def test_a_smaller_budget_than_what_is_stored_evicts_the_oldest(store):
    fill(store.tier(), 1, 2, 3, 4)
    smaller = store.tier(2 * STORED_BYTES)
    smaller.trim()
    assert held(smaller) == [3, 4]
    assert_whole(store, smaller)


def test_a_namespace_over_its_quota_evicts_its_own_chunks_only(store):
    tier = store.tier(quota=2 * STORED_BYTES)
    fill(tier, 1, namespace="a")
    fill(tier, 1, 2, 3, namespace="b")
    assert (held(tier, "a"), held(tier, "b")) == ([1], [2, 3])
    assert tier.stats().evictions == {"quota": 1}
    assert_whole(store, tier)


def test_quota_and_budget_are_both_kept_and_nobody_leaves_twice(store):
    tier = store.tier(4 * STORED_BYTES, quota=2 * STORED_BYTES)
    fill(tier, 1, 2, namespace="a")
    fill(tier, 1, 2, namespace="b")
    fill(tier, 3, namespace="b")
    assert (held(tier, "a"), held(tier, "b")) == ([1, 2], [2, 3])
    fill(tier, 1, namespace="c")
    assert (held(tier, "a"), held(tier, "b"), held(tier, "c")) == ([2], [2, 3], [1])
    assert tier.stats().evictions == {"quota": 1, "budget": 1}
    assert_whole(store, tier)


def test_what_leaves_for_a_quota_is_not_counted_again_for_the_budget(store):
    wide = torch.zeros(2, 2, 16, 1, 24)
    wide_bytes = encode_chunk(
        small_chunk(3, "b").key, small_chunk(3, "b").token_ids, wide
    ).num_bytes
    quota = STORED_BYTES + wide_bytes
    tier = store.tier(quota + STORED_BYTES, quota=quota)
    fill(tier, 1, namespace="b")
    fill(tier, 1, 2, namespace="a")
    fill(tier, 2, namespace="b")
    assert tier.write(small_chunk(3, "b"), wide)
    assert (held(tier, "a"), held(tier, "b")) == ([2], [2, 3])
    assert tier.stats().evictions == {"quota": 1, "budget": 1}
    assert_whole(store, tier)


def test_a_pinned_chunk_stays_and_what_does_not_fit_beside_it_is_refused(store):
    unpin = pin(store.registry, [small_chunk(1).key, small_chunk(2).key])
    tier = store.tier(2 * STORED_BYTES)
    fill(tier, 1, 2)
    assert fill(tier, 3) == [False]
    assert held(tier) == [1, 2]
    assert tier.stats().refused == 1
    assert_whole(store, tier)
    unpin()
    assert fill(tier, 3) == [True]


def test_a_chunk_larger_than_the_tier_evicts_nobody(store):
    tier = store.tier(STORED_BYTES)
    fill(tier, 1)
    wider = torch.zeros(2, 2, 16, 1, 16)
    assert not tier.write(small_chunk(2), wider)
    assert held(tier) == [1]
    assert_whole(store, tier)


def test_a_chunk_written_again_is_counted_once(store):
    tier = store.tier(2 * STORED_BYTES)
    fill(tier, 1, 1, 1)
    assert_whole(store, tier)
    assert tier.stats().num_chunks == 1
    tier.remove(small_chunk(1).key)
    assert held(tier) == []
    assert_whole(store, tier)


def test_another_process_s_lease_keeps_a_chunk_from_eviction(store):
    one, other = store.tier(STORED_BYTES), store.tier(STORED_BYTES)
    fill(one, 1)
    one.lease("reader", [small_chunk(1).key], 60.0)
    assert fill(other, 2) == [False]
    one.release("reader")
    assert fill(other, 2) == [True]
    assert held(one) == [2]


def test_a_chunk_that_two_lease_stays_until_both_have_released_it(store):
    tier = store.tier(STORED_BYTES)
    fill(tier, 1)
    for holder in ("one", "other"):
        tier.lease(holder, [small_chunk(1).key], 60.0)
    assert tier.stats().num_leases == 1
    tier.release("one")
    assert fill(tier, 2) == [False]
    tier.release("other")
    assert fill(tier, 2) == [True]


def test_a_chunk_removed_while_leased_goes_when_the_lease_ends(store):
    one, other = store.tier(), store.tier()
    fill(one, 1)
    one.lease("reader", [small_chunk(1).key], 60.0)
    other.remove(small_chunk(1).key)
    assert torch.equal(one.read(small_chunk(1)), small_kv(1))
    one.release("reader")
    assert held(one) == []
    assert_whole(store, one)


@pytest.mark.parametrize("seconds", [61, -50_000], ids=["past its deadline", "clock set back"])
def test_a_dead_process_s_lease_holds_nothing_for_ever(store, clock, seconds):
    tier = store.tier(STORED_BYTES)
    fill(tier, 1)
    tier.lease("dead", [small_chunk(1).key], 60.0)
    assert tier.stats().num_leases == 1
    clock.seconds += seconds
    assert tier.stats().num_leases == 0
    assert fill(tier, 2) == [True]


def test_a_chunk_removed_and_stored_again_stays(store):
    tier = store.tier()
    fill(tier, 1)
    tier.lease("reader", [small_chunk(1).key], 60.0)
    tier.remove(small_chunk(1).key)
    fill(tier, 1)
    tier.release("reader")
    assert held(tier) == [1]


def test_a_deleted_document_s_chunk_goes_though_its_deleter_died_before_removing_it(store):
    tier = store.tier()
    fill(tier, 1, 2)
    pin(store.registry, [small_chunk(1).key])
    (document,) = store.registry.page("default").documents
    assert store.registry.delete("default", document.id) == (small_chunk(1).key,)
    tier.trim()
    assert held(tier) == [2]
    assert_whole(store, tier)


def test_a_chunk_that_nobody_names_any_more_leaves_before_one_used_longer_ago(store):
    tier = store.tier(3 * STORED_BYTES)
    fill(tier, 1, 2, 3)
    pin(store.registry, [small_chunk(2).key])
    (document,) = store.registry.page("default").documents
    store.registry.delete("default", document.id)
    fill(tier, 4)
    assert held(tier) == [1, 3, 4]
    assert_whole(store, tier)


def test_a_chunk_of_a_deleted_document_stays_if_one_of_the_same_content_was_registered(store):
    tier = store.tier()
    fill(tier, 1)
    pin(store.registry, [small_chunk(1).key])
    (document,) = store.registry.page("default").documents
    store.registry.delete("default", document.id)
    pin(store.registry, [small_chunk(1).key])
    tier.trim()
    assert held(tier) == [1]


def flipped(content, place):
    damaged = bytearray(content)
    damaged[place] ^= 1
    return bytes(damaged)


DAMAGES = {
    "a flipped bit of the header's length": ("header", lambda c, other: flipped(c, 0)),
    "a flipped bit of the header": ("header", lambda c, other: flipped(c, 8)),
    "a flipped bit of the key": ("identity", lambda c, other: flipped(c, c.index(b'"key"') + 8)),
    "a flipped bit of the KV": ("checksum", lambda c, other: flipped(c, -1)),
    "cut": ("length", lambda c, other: c[:-1]),
    "longer": ("length", lambda c, other: c + b"\0"),
    "emptied": ("length", lambda c, other: b""),
    "another chunk's": ("identity", lambda c, other: other),
}


@pytest.mark.parametrize(("reason", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_bytes_are_unreadable_and_discarded_whoever_leases_them(store, reason, damage):
    tier = store.tier()
    fill(tier, 1, 2)
    key = small_chunk(1).key
    tier.lease("reader", [key], 60.0)
    other = store.content(tier, small_chunk(2).key)
    store.damage(tier, key, damage(store.content(tier, key), other))
    with pytest.raises(ChunkUnreadable):
        tier.read(small_chunk(1))
    assert tier.stats().failed_reads == {reason: 1}
    tier.discard(key)
    assert held(tier) == [2]
    assert tier.stats().evictions == {"damaged": 1}
    assert_whole(store, tier)


def test_bytes_that_were_lost_are_a_miss_and_can_be_stored_again(store):
    tier = store.tier(2 * STORED_BYTES)
    fill(tier, 1, 2)
    store.lose(tier, small_chunk(1).key)
    with pytest.raises(ChunkUnreadable):
        tier.read(small_chunk(1))
    assert fill(tier, 1) == [True]
    assert held(tier) == [1, 2]
    assert_whole(store, tier)

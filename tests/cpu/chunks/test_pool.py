"""Who holds the pool's pages: what stays while somebody reads it, and what leaves first."""

import pytest
from fake_runner import PAGE_SIZE, chunk

from legokv.chunks.pool import ChunkCache, PagePool
from legokv.errors import Busy, CacheUnavailable, PoolFull


def filled(num_pages, *chunks, **settings):
    """A cache that holds these chunks, made in this order."""
    cache = ChunkCache(PagePool(num_pages, PAGE_SIZE), **settings)
    for one in chunks:
        use(cache, one)
    return cache


def use(cache, *chunks):
    """What a request over these chunks does to the pool, from its grant to its end."""
    granted = cache.grant(chunks, 0)
    for resident in granted.new:
        cache.mark_ready(resident)
    cache.release(granted)
    return granted


def held(cache):
    return [resident.chunk.key for resident in cache.residents]


def left(granted):
    return [evicted.chunk.key for evicted in granted.evicted]


def test_the_least_recently_used_leaves_first_not_the_oldest_made():
    cache = filled(9, chunk(1), chunk(2), chunk(3))
    use(cache, chunk(1))
    assert left(use(cache, chunk(4))) == ["key 2"]
    use(cache, chunk(3))
    assert left(use(cache, chunk(5), chunk(6))) == ["key 1", "key 4"]
    assert held(cache) == ["key 3", "key 5", "key 6"]


def test_what_leaves_is_named_with_the_pages_its_kv_is_in_and_no_more_leaves_than_must():
    cache = filled(9, chunk(1), chunk(2), chunk(3))
    pages = cache.find("key 1").pages
    (gone,) = use(cache, chunk(4)).evicted
    assert gone.pages == tuple(pages)
    assert sorted(cache.find("key 4").pages) == sorted(pages)


def test_a_chunk_that_is_read_stays_whatever_others_need():
    cache = filled(6, chunk(1), chunk(2))
    reading = cache.grant([chunk(1)], 0)
    assert left(use(cache, chunk(3))) == ["key 2"]
    with pytest.raises(PoolFull, match="6 pages of 4 tokens are needed, 3 of 6 are free or can"):
        cache.grant([chunk(4), chunk(5)], 0)
    assert (held(cache), cache.num_leases) == (["key 1", "key 3"], 1)
    cache.release(reading)
    assert left(use(cache, chunk(4), chunk(5))) == ["key 1", "key 3"]


def test_a_chunk_whose_kv_is_being_made_does_not_leave():
    cache = ChunkCache(PagePool(6, PAGE_SIZE))
    making = cache.grant([chunk(1)], 0)
    cache.lease(making.new[0])
    cache.release(making)
    with pytest.raises(PoolFull):
        cache.grant([chunk(2), chunk(3)], 0)
    assert held(cache) == ["key 1"]


def test_a_pinned_chunk_does_not_leave():
    cache = filled(6, chunk(1), chunk(2), pinned_keys=lambda: {"key 1"})
    assert left(use(cache, chunk(3))) == ["key 2"]


def test_chunks_that_a_request_asks_for_do_not_leave_for_its_others():
    cache = filled(6, chunk(1), chunk(2))
    granted = cache.grant([chunk(3), chunk(1)], 0)
    assert left(granted) == ["key 2"]
    assert [resident.chunk.key for resident in granted.residents] == ["key 3", "key 1"]


def test_a_grant_that_cannot_be_takes_and_counts_nothing():
    cache = filled(6, chunk(1))
    reading = cache.grant([chunk(1)], 0)
    with pytest.raises(PoolFull):
        cache.grant([chunk(2)], 1)
    assert (cache.pool.num_free, held(cache), cache.num_leases) == (3, ["key 1"], 1)
    stats = cache.stats(1)
    assert (stats.hits, stats.misses, dict(stats.evictions)) == (1, 1, {})
    cache.release(reading)


def test_a_dropped_chunk_keeps_its_pages_until_the_last_who_reads_it_has_ended():
    cache = filled(6, chunk(1))
    readers = [cache.grant([chunk(1)], 0) for _ in range(2)]
    cache.drop("key 1")
    assert (cache.find("key 1"), cache.pool.num_free) == (None, 3)
    cache.release(readers[0])
    assert cache.pool.num_free == 3
    cache.release(readers[1])
    assert cache.pool.num_free == 6


def test_a_chunk_dropped_and_asked_for_again_has_other_pages_than_its_readers():
    cache = filled(6, chunk(1))
    reading = cache.grant([chunk(1)], 0)
    cache.drop("key 1")
    again = use(cache, chunk(1))
    assert not set(again.residents[0].pages) & set(reading.residents[0].pages)
    cache.release(reading)
    assert (held(cache), cache.pool.num_free) == (["key 1"], 3)


def test_a_chunk_nobody_reads_frees_its_pages_when_it_is_dropped():
    cache = filled(6, chunk(1))
    cache.drop("key 1")
    cache.drop("unknown")
    assert (held(cache), cache.pool.num_free) == ([], 6)


def test_a_chunk_whose_kv_was_never_made_leaves_with_its_last_lease():
    cache = ChunkCache(PagePool(6, PAGE_SIZE))
    grants = [cache.grant([chunk(1)], 0) for _ in range(2)]
    cache.release(grants[0])
    assert held(cache) == ["key 1"]
    cache.release(grants[1])
    assert (held(cache), cache.pool.num_free) == ([], 6)
    # One that was dropped meanwhile takes nobody's place with it.
    old = cache.grant([chunk(1)], 0)
    cache.drop("key 1")
    use(cache, chunk(1))
    cache.release(old)
    assert (held(cache), cache.pool.num_free) == (["key 1"], 3)


def test_past_the_high_watermark_the_pool_evicts_down_to_the_low_one():
    cache = filled(12, chunk(1), chunk(2), high_watermark=0.5, low_watermark=0.25)
    assert left(use(cache, chunk(3))) == ["key 1", "key 2"]


def test_whether_a_grant_would_be_given_without_some_that_end_is_foreseen_to_the_page():
    cache = ChunkCache(PagePool(9, PAGE_SIZE))
    ending = cache.grant([chunk(1, 8)], 2)
    staying = cache.grant([chunk(2, 4)], 2)
    (filling,) = ending.new
    cache.lease(filling)  # by who compiles it
    asked = [chunk(2, 4), chunk(3, 4)]
    assert cache.would_grant(asked, 5, without=[ending])
    assert not cache.would_grant(asked, 6, without=[ending])
    assert not cache.would_grant(asked, 5, without=[])
    # Another one waits for the same chunk: it stays.
    other = cache.grant([chunk(1, 8)], 0)
    assert not cache.would_grant(asked, 5, without=[ending])
    cache.release(other)
    cache.mark_ready(filling)
    cache.end_lease(filling)
    cache.release(ending)
    assert cache.would_grant(asked, 5, without=[])
    assert cache.grant(asked, 5)
    assert staying.residents[0].leases == 2


def test_a_pinned_chunk_and_one_that_is_asked_for_make_no_room():
    cache = filled(6, chunk(1, 8), chunk(2, 8), pinned_keys=lambda: {"key 1"})
    assert cache.would_grant([], 4, without=[])
    assert not cache.would_grant([], 5, without=[])
    assert cache.would_grant([chunk(2, 8)], 2, without=[])
    assert not cache.would_grant([chunk(2, 8)], 3, without=[])


@pytest.mark.parametrize("error", [CacheUnavailable("disk I/O error"), Busy("database is locked")])
def test_while_nobody_can_say_what_is_pinned_what_was_known_last_counts(error, caplog):
    said = [lambda: {"key 1"}]
    cache = filled(9, chunk(1), chunk(2), chunk(3), pinned_keys=lambda: said[0]())
    assert left(use(cache, chunk(4))) == ["key 2"]

    def fail():
        raise error

    said[0] = fail
    assert left(use(cache, chunk(5))) == ["key 3"]
    assert str(error) in caplog.text
    said[0] = set
    assert left(use(cache, chunk(6))) == ["key 1"]

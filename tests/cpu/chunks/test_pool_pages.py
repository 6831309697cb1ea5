import pytest

from legokv.chunks.pool import PagePool
from legokv.errors import PoolFull


def test_a_page_has_one_holder_at_a_time():
    pool = PagePool(num_pages=6, page_size=16)
    taken = pool.take(2) + pool.take(4)
    assert sorted(taken) == list(range(6))


def test_a_refused_request_takes_nothing():
    pool = PagePool(num_pages=1, page_size=16)
    with pytest.raises(PoolFull, match="2 pages of 16 tokens are needed, 1 of 1 are free"):
        pool.take(2)
    assert pool.num_free == 1


def test_pages_given_back_can_be_taken_again():
    pool = PagePool(num_pages=3, page_size=16)
    pool.give_back(pool.take(3))
    assert sorted(pool.take(3)) == [0, 1, 2]


def test_a_page_given_back_twice_is_caught():
    pool = PagePool(num_pages=3, page_size=16)
    pages = pool.take(1)
    pool.give_back(pages)
    with pytest.raises(AssertionError, match=f"page {pages[0]} is given back but was not taken"):
        pool.give_back(pages)


@pytest.mark.parametrize(("num_tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_a_last_page_is_counted_even_if_it_is_not_full(num_tokens, pages):
    assert PagePool(num_pages=1, page_size=16).pages_for(num_tokens) == pages

"""The serving workload is what it says: seeded, Zipf, Poisson, and order-shuffled."""

import itertools
import math
import statistics
from collections import Counter

import pytest

from benchmarks.record.names import UnknownName
from benchmarks.serving.highest_rate import RateRange, highest_rate
from benchmarks.serving.methods import method
from benchmarks.serving.workload import Workload, arrivals, reusable, selections

WORKLOAD = Workload(seed=7, num_documents=20, documents_per_request=3)


def test_the_same_seed_gives_the_same_requests_at_every_rate():
    slow, fast = arrivals(WORKLOAD, 1.0, 50), arrivals(WORKLOAD, 4.0, 50)
    assert slow == arrivals(WORKLOAD, 1.0, 50)
    assert [r.documents for r in slow] == [r.documents for r in fast]
    assert slow[-1].at_seconds == pytest.approx(4 * fast[-1].at_seconds)
    assert selections(WORKLOAD, 50) != selections(Workload(8, 20, 3), 50)


def test_documents_are_drawn_by_a_zipf_law():
    drawn = Counter(n for (n,) in selections(Workload(1, 20, 1), 20_000))
    weights = [1 / (n + 1) for n in range(20)]
    for number in (0, 1, 9):
        share = weights[number] / sum(weights)
        assert drawn[number] / 20_000 == pytest.approx(share, rel=0.08)


def test_arrivals_are_a_poisson_process():
    at = [request.at_seconds for request in arrivals(WORKLOAD, 5.0, 4000)]
    gaps = [after - before for before, after in itertools.pairwise(at)]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.06)
    # An exponential gap's deviation is its mean; a steady one's would be none.
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.1)


def test_a_requests_documents_differ_and_their_order_says_nothing_of_their_popularity():
    requests = selections(WORKLOAD, 4000)
    assert all(len(set(documents)) == 3 for documents in requests)
    ascending = sum(documents[0] < documents[1] for documents in requests) / 4000
    assert ascending == pytest.approx(0.5, abs=0.03)


def test_reusable_shares_count_first_document_prefix_and_any_place():
    share = reusable([(1, 2), (1, 2), (2, 1), (1, 3)])
    assert (share.first_document, share.longest_prefix, share.any_place) == (2 / 8, 3 / 8, 5 / 8)


def test_more_documents_a_request_than_there_are_is_refused():
    with pytest.raises(ValueError, match="4 different documents a request need as many in all"):
        Workload(1, 3, 4)


def test_an_unknown_method_is_a_clear_error_and_cacheblend_has_its_reason():
    with pytest.raises(UnknownName, match="unknown method 'guess'; known are full, prefix"):
        method("guess")
    with pytest.raises(UnknownName, match="unknown method 'legolink-0'"):
        method("legolink-0")  # which is no LegoLink-K with K = 0
    with pytest.raises(UnknownName, match="cacheblend-15 is not served: it needs its own"):
        method("cacheblend-15")


def test_the_highest_rate_is_closed_in_on_from_both_sides():
    found = highest_rate(lambda rate: rate, 3.0, RateRange(0.5, math.inf), num_probes=10)
    assert found.held <= 3.0 < found.broke
    assert found.broke / found.held < 1.05
    assert highest_rate(lambda rate: math.inf, 3.0, RateRange(0.0, 1.0), num_probes=3).held == 0.0

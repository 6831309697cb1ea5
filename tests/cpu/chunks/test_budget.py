import pytest

from legokv.chunks.budget import Budget, Candidate, victims
from legokv.errors import InvalidRequest


def candidates(*sizes):
    return [Candidate(str(number), size) for number, size in enumerate(sizes)]


def test_nothing_leaves_up_to_the_high_watermark():
    assert Budget(100, high=0.8, low=0.5).to_free(70, 10) == (0, 0)


def test_past_the_high_watermark_chunks_leave_down_to_the_low_one():
    assert Budget(100, high=0.8, low=0.5).to_free(75, 10) == (35, 0)


def test_what_must_leave_is_what_passes_the_limit_itself():
    assert Budget(100, high=0.8, low=0.5).to_free(95, 10) == (55, 5)


def test_the_first_that_free_enough_leave_and_no_more():
    assert [c.key for c in victims(candidates(10, 10, 10), 15, 5)] == ["0", "1"]


def test_where_some_free_just_what_is_wanted_no_other_leaves():
    assert [c.key for c in victims(candidates(10, 10, 10), 20, 5)] == ["0", "1"]


def test_all_leave_where_that_is_less_than_wanted_but_enough():
    assert len(victims(candidates(10, 10), 50, 20)) == 2


def test_nobody_leaves_where_all_of_them_are_too_little():
    assert victims(candidates(10, 10), 50, 21) is None


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.9, 0.8), (0.5, 1.1), (-1.0, 0.5)])
def test_watermarks_that_make_no_sense_are_refused(low, high):
    with pytest.raises(InvalidRequest, match="watermarks 0 < low <= high <= 1"):
        Budget(100, high=high, low=low)


def test_a_budget_below_nothing_is_refused():
    with pytest.raises(InvalidRequest, match="not -1"):
        Budget(-1)

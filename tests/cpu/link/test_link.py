import numpy as np
import pytest

from legokv.chunks.chunk import Chunk
from legokv.errors import InvalidRequest, RankingMissing
from legokv.link.link import bind, link, place
from legokv.link.policy import ByPlace, everything, legolink, nothing
from legokv.step.tails import num_own_pages

S = 16


def chunk(name, num_tokens, behind=None):
    return Chunk(name, "default", tuple(range(num_tokens)), behind=behind)


def rows(linked):
    return [(p.base, p.first_position, p.filled, p.chunk, p.page, p.private) for p in linked.pages]


def test_linking_copies_nothing_when_link_tokens_fill_pages():
    linked = link([chunk("a", 40), chunk("b", 40), [7] * 5], legolink(S), S)
    bound = bind(linked, [[10, 11, 12], [20, 21, 22]], [1, 2], S)
    assert bound.copy_sources == ()
    assert bound.table.tolist() == [
        [10, 0, 0, 16],
        [11, 0, 16, 16],
        [12, 0, 32, 8],
        [1, 40, 40, 16],
        [21, 40, 56, 16],
        [22, 40, 72, 8],
        [2, 0, 80, 5],
    ]


def test_tokens_beside_each_other_share_their_pages():
    linked = link([[5] * 3, [6] * 4, chunk("a", 16), [7]], nothing, S)
    assert [(page.first_position, page.filled) for page in linked.pages] == [
        (0, 7),
        (7, 16),
        (23, 1),
    ]
    assert linked.num_private_pages == 2


def test_a_page_recomputed_in_part_is_copied_first():
    linked = link([chunk("a", 40), chunk("b", 40), [7] * 5], legolink(18), S)
    bound = bind(linked, [[10, 11, 12], [20, 21, 22]], [1, 2, 3], S)
    assert (bound.copy_sources, bound.copy_targets) == ((21,), (2,))
    assert [row[0] for row in bound.table[3:6].tolist()] == [1, 2, 22]


def test_a_page_with_no_recomputed_token_stays_shared_whatever_set_is_recomputed():
    def scattered(chunks):
        return [np.arange(0), np.array([3, 20, 39])]

    linked = link([chunk("a", 40), chunk("b", 60), [7]], ByPlace(scattered), S)
    assert [p.private is None for p in linked.pages] == [True] * 3 + [
        False,
        False,
        False,
        True,
        False,
    ]
    assert linked.positions.tolist() == [43, 60, 79, 100]
    assert linked.key_positions.tolist() == [3, 20, 39, 100]


def test_counts_are_what_epic_says():
    k, lengths = 16, [50, 40, 7, 33]
    segments = [chunk(str(n), length) for n, length in enumerate(lengths)]
    linked = link([*segments, [1] * 9], legolink(k), S)
    assert linked.recomputed_tokens == sum(min(k, n) for n in lengths[1:]) == 16 + 7 + 16
    assert linked.fresh_tokens == 9
    assert linked.cached_tokens == sum(lengths) - linked.recomputed_tokens
    assert linked.prompt_tokens == sum(lengths) + 9
    assert len(linked.token_ids) == linked.recomputed_tokens + 9


def test_computed_tokens_ascend_by_position_and_their_slots_are_their_own():
    linked = link([[5] * 3, chunk("a", 20), [6] * 30, chunk("b", 17), [7] * 2], legolink(4), S)
    assert (np.diff(linked.positions) > 0).all()
    assert len(set(linked.slots.tolist())) == len(linked.slots)
    assert linked.slots.max() < linked.num_private_pages * S


def test_every_position_of_the_prompt_is_in_the_table_once_and_no_other():
    linked = link([[5] * 3, chunk("a", 20), [6] * 30, chunk("b", 17), [7] * 2], legolink(4), S)
    listed = [page.first_position + slot for page in linked.pages for slot in range(page.filled)]
    assert sorted(listed) == list(range(linked.prompt_tokens))


def test_the_same_chunk_twice_is_read_from_the_same_pages_at_two_bases():
    linked = link([chunk("a", 16), chunk("b", 16), chunk("a", 16), [7]], nothing, S)
    bound = bind(linked, [[4], [5]], [9], S)
    assert bound.table[:3].tolist() == [[4, 0, 0, 16], [5, 16, 16, 16], [4, 32, 32, 16]]


def test_a_prompt_that_ends_with_a_chunk_computes_its_last_token_fresh():
    linked = link([chunk("a", 40)], legolink(16), S)
    assert (linked.cached_tokens, linked.fresh_tokens) == (39, 1)
    assert linked.token_ids.tolist() == [39]
    assert linked.positions.tolist() == [39]
    assert linked.pages[2].filled == 7


def test_full_recompute_reads_no_chunk():
    linked = link([chunk("a", 40), chunk("b", 3), [7]], everything, S)
    assert linked.chunks == ()
    assert linked.recomputed_tokens == 43
    assert linked.cached_tokens == 0


def test_a_chunk_compiled_behind_others_is_based_before_its_place():
    linked = link([chunk("a", 16), chunk("b", 16, behind=chunk("c", 4)), [7]], nothing, S)
    assert rows(linked)[1] == (12, 16, 16, 1, 0, None)


def test_room_is_left_for_the_answer_behind_the_prompt():
    linked = link([chunk("a", 16), [7] * 10], nothing, S, reserve_tokens=30)
    assert linked.num_private_pages == 3
    assert (linked.tail_private, linked.tail_position) == (0, 16)


def test_an_empty_prompt_is_refused():
    with pytest.raises(InvalidRequest, match="the prompt has 0 tokens"):
        link([[], []], legolink(16), S)


class Above:
    """Recompute what scores more than a half."""

    needs_scores, drift = True, False

    def choose(self, chunks, scores=None):
        parts = [scores[c.position : c.position + c.num_tokens] for c in chunks]
        return [np.flatnonzero(part > 0.5) for part in parts]


SEGMENTS = [chunk("a", 40), [6] * 5, chunk("b", 60), chunk("a", 40), [7] * 9]


def test_a_chunk_without_a_ranking_is_named_once_wherever_it_stands():
    placement = place(SEGMENTS, S)
    with pytest.raises(
        RankingMissing, match="number 2 of 4, of 40 tokens, has none, nor has 1 other:"
    ):
        place([SEGMENTS[0], *SEGMENTS], S).scores_of({"a": None, "b": None}, "m")
    with pytest.raises(RankingMissing, match="number 3 of 3, of 40 tokens, has none: reg") as one:
        placement.scores_of({"a": None, "b": np.zeros(60, np.float32)}, "ranked")
    assert one.value.keys == ("a",)


def test_scores_of_a_first_pass_choose_by_absolute_position():
    placement = place(SEGMENTS, S, reserve_tokens=20)
    scores = np.zeros(154, np.float32)
    scores[[1, 44, 45, 90, 106]] = 1  # 44 is a fresh token, computed anyway
    linked = placement.link(Above(), scores)
    assert linked.positions.tolist() == [1, *range(40, 45), 45, 90, 106, *range(145, 154)]
    assert (linked.recomputed_tokens, linked.cached_tokens, linked.fresh_tokens) == (4, 136, 14)


def test_a_first_pass_computes_the_fresh_tokens_and_reads_every_chunk():
    placement = place(SEGMENTS, S, reserve_tokens=20)
    first = placement.first_pass()
    assert first.positions.tolist() == [*range(40, 45), *range(145, 154)]
    assert [chunk.key for chunk in first.chunks] == ["a", "b"]
    assert placement.question_tokens == 9


def test_pages_are_bounded_before_scores_are_known():
    placement = place(SEGMENTS, S, reserve_tokens=20)
    most = placement.most_private_pages
    dice = np.random.Generator(np.random.PCG64(1))
    for share in (0.0, 0.1, 0.5, 0.9):
        scores = (dice.random(154) < share).astype(np.float32)
        linked = placement.link(Above(), scores)
        assert placement.first_pass().num_private_pages <= linked.num_private_pages <= most
    assert placement.link(Above(), np.ones(154, np.float32)).num_private_pages == most
    assert placement.link(everything).num_private_pages == most
    assert placement.link(legolink(16)).num_private_pages < most


def test_where_answers_go_on_and_what_they_take_does_not_depend_on_what_is_chosen():
    placement = place(SEGMENTS, S, reserve_tokens=20)
    links = [placement.link(policy) for policy in (nothing, everything, legolink(3))]
    assert {(made.tail_position, num_own_pages(made, S)) for made in links} == {(145, 2)}


def test_a_policy_that_needs_scores_is_never_asked_without():
    with pytest.raises(ValueError, match="needs the scores of a first pass"):
        link(SEGMENTS, Above(), S)

import numpy as np

from legokv.link.policy import (
    ByScores,
    PlacedChunk,
    Share,
    documents,
    everything,
    legolink,
    nothing,
    spread,
)

CHUNKS = [PlacedChunk(0, 40), PlacedChunk(40, 5), PlacedChunk(60, 300)]


def as_lists(sets):
    return [list(indices) for indices in sets]


def test_legolink_recomputes_the_first_tokens_of_all_chunks_but_the_one_at_the_start():
    assert as_lists(legolink(16).choose(CHUNKS)) == [[], list(range(5)), list(range(16))]


def test_a_chunk_behind_fresh_tokens_is_not_first():
    assert as_lists(legolink(2).choose([PlacedChunk(3, 9)])) == [[0, 1]]


def test_legolink_with_zero_tokens_and_nothing_recompute_no_cached_token():
    assert as_lists(legolink(0).choose(CHUNKS)) == as_lists(nothing.choose(CHUNKS)) == [[], [], []]


def test_full_recompute_is_the_set_of_all_tokens():
    assert [len(s) for s in everything.choose(CHUNKS)] == [40, 5, 300]


def test_spread_recomputes_as_many_tokens_evenly_over_each_document():
    assert as_lists(spread(4).choose(CHUNKS)) == [[], [0, 1, 2, 3], [0, 75, 150, 225]]
    assert as_lists(spread(5).choose(CHUNKS[1:2])) == [[0, 1, 2, 3, 4]]
    assert as_lists(spread(0).choose(CHUNKS)) == [[], [], []]


# A head, two chunks behind it, a document of two behind another head, and one chunk alone.
RUNS = [
    PlacedChunk(0, 10),
    PlacedChunk(10, 20, 10, continues=True),
    PlacedChunk(30, 5, 30, continues=True),
    PlacedChunk(35, 8, 12),
    PlacedChunk(43, 32, 20, continues=True),
    PlacedChunk(75, 10),
]


def test_a_document_s_chunks_share_one_budget_and_what_stands_as_compiled_needs_none():
    assert as_lists(legolink(10).choose(RUNS)) == [[], [], [], list(range(8)), [0, 1], [*range(10)]]
    assert as_lists(spread(4).choose(RUNS)) == [[], [], [], [0], [2, 12, 22], [0, 2, 5, 7]]


def test_a_share_is_of_each_document_s_tokens_to_the_nearest_number():
    assert as_lists(legolink(Share(10)).choose(RUNS)) == [[], [], [], [0, 1, 2, 3], [], [0]]
    assert as_lists(spread(Share(10)).choose(RUNS)) == [[], [], [], [0], [2, 12, 22], [0]]
    assert [len(s) for s in spread(Share(100)).choose(RUNS)] == [0, 0, 0, 8, 32, 10]
    assert as_lists(spread(Share(0)).choose(RUNS)) == [[]] * 6


def test_guided_takes_no_more_of_a_short_document_than_it_has_to_give():
    scores = np.arange(100.0)
    chunks = [PlacedChunk(10, 5), PlacedChunk(15, 85)]
    assert as_lists(ByScores(16).choose(chunks, scores)) == [[], [*range(64, 85)]]
    assert as_lists(ByScores(16).choose(chunks, -scores)) == [[0, 1, 2, 3, 4], [*range(16)]]


def test_a_document_without_its_head_or_its_beginning_is_not_exact():
    assert as_lists(legolink(2).choose([PlacedChunk(0, 9, 10)])) == [[0, 1]]
    assert as_lists(legolink(2).choose([PlacedChunk(10, 9, 10, continues=True)])) == [[]]


def test_what_continues_a_chunk_behind_fresh_tokens_is_a_document_of_its_own():
    # A chunk compiled alone, fresh tokens, and a chunk compiled behind all of that: it is exact.
    chunks = [PlacedChunk(5, 8), PlacedChunk(20, 10, start=20, continues=True)]
    scores = np.arange(40, dtype=np.float32)
    first, second = ByScores(4).choose(chunks, scores)
    assert (first.tolist(), second.tolist()) == ([4, 5, 6, 7], [])
    assert documents(chunks) == [0, 1]

from legokv.link.policy import PlacedChunk, everything, legolink, nothing

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

"""What a chunk's compilation computes and reads: its own tokens, over all that stands before."""

import numpy as np
import pytest

from legokv.step.sequence import CompiledPages, chunk_sequence


@pytest.mark.parametrize("lengths", [(), (1,), (4,), (5, 8), (3, 1, 6)])
def test_a_chunk_reads_each_token_before_it_once_and_writes_its_own(
    lengths: tuple[int, ...],
) -> None:
    page_size, ids, free = 4, (7, 8, 9, 10, 11), iter(range(20))
    before, start = [], 0
    for length in lengths:
        pages = [next(free) for _ in range(-(-length // page_size))]
        before.append(CompiledPages(start, length, pages))
        start += length
    sequence = chunk_sequence(ids, [31, 30], page_size, before)
    assert sequence.token_ids.tolist() == list(ids)
    assert sequence.positions.tolist() == list(range(start, start + len(ids)))
    assert sequence.key_positions.tolist() == sequence.positions.tolist()
    assert sequence.slots.tolist() == [124, 125, 126, 127, 120]
    seen = {
        first + slot: page
        for page, base, first, filled in sequence.table.tolist()
        for slot in range(filled)
        if base == 0 and first + slot < start + len(ids)
    }
    stood = [page for part in before for page in np.repeat(part.pages, 4)[: part.num_tokens]]
    assert seen == dict(enumerate([*stood, 31, 31, 31, 31, 30]))

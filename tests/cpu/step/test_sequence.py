"""What a chunk's compilation computes and reads: dummies first, in pages of their own."""

import numpy as np
import pytest

from legokv.step.sequence import chunk_sequence


@pytest.mark.parametrize("num_dummies", [1, 4, 5, 8])
def test_dummies_may_fill_more_than_one_page_and_each_is_seen_once(num_dummies: int) -> None:
    page_size, dummies, ids = 4, tuple(range(90, 90 + num_dummies)), (7, 8, 9, 10, 11)
    dummy_pages = [6, 2][: -(-num_dummies // page_size)]
    sequence = chunk_sequence(ids, [5, 3], page_size, dummies, dummy_pages)
    num_tokens = num_dummies + len(ids)
    assert sequence.token_ids.tolist() == [*dummies, *ids]
    assert sequence.positions.tolist() == list(range(num_tokens))
    piece = sequence.next(num_tokens)
    written = dict(zip(piece.slots.tolist(), piece.positions.tolist(), strict=True))
    seen = {
        page * page_size + slot: first + slot
        for page, _, first, filled in piece.table.tolist()
        for slot in range(filled)
        if first + slot < num_tokens
    }
    assert seen == written, "each slot is read as the position that was written to it"
    assert np.all(piece.table[:, 3] <= page_size)

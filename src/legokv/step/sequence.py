"""Tokens of one sequence on their way through the model: what is computed, what is next."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from legokv.link.link import BoundLink, Link
from legokv.model.dtypes import Int32
from legokv.step.batch import Piece


@dataclass
class TokenSequence:
    """Tokens to compute, ascending by position, over a page table that already lists their pages.

    token_ids, positions, key_positions, slots: int32 [C]; table int32 [P, 4]; the last `num_left`
    of the C tokens are still to be computed. The last that was, was in the engine's step
    `last_step`, or the sequence began then.
    """

    token_ids: Int32
    positions: Int32
    key_positions: Int32
    slots: Int32
    table: Int32
    last_step: int = 0
    num_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_left = len(self.token_ids)

    def next(self, num_tokens: int) -> Piece:
        """The next `num_tokens` tokens; `advance` says they were computed."""
        start = len(self.token_ids) - self.num_left
        part = slice(start, start + num_tokens)
        return Piece(
            self.token_ids[part],
            self.positions[part],
            self.key_positions[part],
            self.slots[part],
            self.table,
        )

    def advance(self, num_tokens: int, step: int) -> None:
        self.num_left -= num_tokens
        self.last_step = step

    def follow_with(self, token_id: int, position: int, slot: int) -> None:
        """One more token, in a page whose base is 0; all before it are computed."""
        self.token_ids, self.positions, self.key_positions, self.slots = (
            np.array([value], np.int32) for value in (token_id, position, position, slot)
        )
        self.num_left = 1


def linked_sequence(link: Link, bound: BoundLink) -> TokenSequence:
    """What a request computes before its first token."""
    return TokenSequence(
        link.token_ids, link.positions, link.key_positions, bound.slots, bound.table
    )


def chunk_sequence(
    token_ids: tuple[int, ...],
    pages: list[int],
    page_size: int,
    dummies: tuple[int, ...],
    dummy_pages: list[int],
) -> TokenSequence:
    """A chunk alone from position 0, behind `dummies` whose KV goes to pages of their own."""
    ids = np.array(dummies + token_ids, np.int32)
    positions = np.arange(len(ids), dtype=np.int32)
    first = range(0, len(dummies), page_size)
    table = [
        (page, 0, start, min(page_size, len(dummies) - start))
        for page, start in zip(dummy_pages, first, strict=True)
    ]
    table += [(page, 0, len(dummies) + n * page_size, page_size) for n, page in enumerate(pages)]
    slots = np.concatenate(
        [
            page_slots(dummy_pages, len(dummies), page_size),
            page_slots(pages, len(token_ids), page_size),
        ]
    )
    return TokenSequence(ids, positions, positions, slots, np.array(table, np.int32))


def page_slots(pages: Sequence[int], num_tokens: int, page_size: int) -> Int32:
    """Where the first `num_tokens` tokens in these pages lie: int32 [n]."""
    index = np.arange(num_tokens)
    numbers = np.array(pages, np.int32)[index // page_size]
    return np.asarray(numbers * page_size + index % page_size, np.int32)

"""Tokens of one sequence on their way through the model: what is computed, what is next."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from legokv.link.drift import Drift
from legokv.link.link import BoundLink, Link
from legokv.model.dtypes import Int32
from legokv.step.batch import Piece


@dataclass
class TokenSequence:
    """Tokens to compute, ascending by position, over a page table that already lists their pages.

    token_ids, positions, key_positions, slots: int32 [C]; table int32 [P, 4]; the last `num_left`
    of the C tokens are still to be computed. The last that was, was in the engine's step
    `last_step`, or the sequence began then. The rows of `drifts` count from the first of the C.
    """

    token_ids: Int32
    positions: Int32
    key_positions: Int32
    slots: Int32
    table: Int32
    last_step: int = 0
    drifts: tuple[Drift, ...] = ()
    num_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_left = len(self.token_ids)

    def next(self, num_tokens: int) -> Piece:
        """The next `num_tokens` tokens; `advance` says they were computed."""
        start = len(self.token_ids) - self.num_left
        part = slice(start, start + num_tokens)
        drifts = [d for d in self.drifts if start <= d.first_row < start + num_tokens]
        return Piece(
            self.token_ids[part],
            self.positions[part],
            self.key_positions[part],
            self.slots[part],
            self.table,
            tuple(drift.behind(-start) for drift in drifts),
        )

    def fitting(self, num_tokens: int) -> int:
        """How many are computed next where a step has room for so many, 1 or more.

        The rows of a drift are computed together, whatever else a step holds: fewer, or more if
        they come next and are more.
        """
        start = len(self.token_ids) - self.num_left
        end = start + num_tokens
        for drift in self.drifts:
            last = drift.first_row + drift.num_rows
            if drift.first_row < end < last:
                end = drift.first_row if drift.first_row > start else last
        return end - start

    def advance(self, num_tokens: int, step: int) -> None:
        self.num_left -= num_tokens
        self.last_step = step

    def follow_with(self, token_id: int, position: int, slot: int) -> None:
        """One more token, in a page whose base is 0; all before it are computed."""
        self.token_ids, self.positions, self.key_positions, self.slots = (
            np.array([value], np.int32) for value in (token_id, position, position, slot)
        )
        self.num_left, self.drifts = 1, ()


def linked_sequence(link: Link, bound: BoundLink, num_positions: int = 0) -> TokenSequence:
    """What a request computes before its first token, from position `num_positions` on."""
    rest = slice(int(np.searchsorted(link.positions, num_positions)), None)
    assert not rest.start or not bound.drifts, "what drifts is computed from its first token on"
    return TokenSequence(
        link.token_ids[rest],
        link.positions[rest],
        link.key_positions[rest],
        bound.slots[rest],
        bound.table,
        drifts=bound.drifts,
    )


@dataclass(frozen=True)
class CompiledPages:
    """Where a compiled chunk lies: `num_tokens` tokens, the first of them at position `start`."""

    start: int
    num_tokens: int
    pages: Sequence[int]

    def rows(self, page_size: int) -> list[tuple[int, int, int, int]]:
        """A page table's rows that show them as they were compiled."""
        return [
            (page, 0, self.start + first, min(page_size, self.num_tokens - first))
            for page, first in zip(self.pages, range(0, self.num_tokens, page_size), strict=True)
        ]


def chunk_sequence(
    token_ids: tuple[int, ...],
    pages: list[int],
    page_size: int,
    before: Sequence[CompiledPages] = (),
) -> TokenSequence:
    """A chunk as it is compiled, behind others or alone; positions count from the first of all."""
    ids = np.array(token_ids, np.int32)
    first = before[-1].start + before[-1].num_tokens if before else 0
    positions = np.arange(first, first + len(ids), dtype=np.int32)
    parts = (*before, CompiledPages(first, len(ids), pages))
    table = [row for part in parts for row in part.rows(page_size)]
    slots = page_slots(pages, len(ids), page_size)
    return TokenSequence(ids, positions, positions, slots, np.array(table, np.int32))


def page_slots(pages: Sequence[int], num_tokens: int, page_size: int) -> Int32:
    """Where the first `num_tokens` tokens in these pages lie: int32 [n]."""
    index = np.arange(num_tokens)
    numbers = np.array(pages, np.int32)[index // page_size]
    return np.asarray(numbers * page_size + index % page_size, np.int32)

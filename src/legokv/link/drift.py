"""Which documents drift in a link: their stored keys and values move as what is recomputed did."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from legokv.link.policy import Indices, PlacedChunk, documents
from legokv.model.dtypes import Int32

MIN_DRIFT_ROWS = 2
"""A mean of fewer says nothing of its own noise."""


@dataclass(frozen=True)
class Drift:
    """A document whose keys and values move by what is recomputed of it, into a request's pages.

    Its rows of the step are those from `first_row` on; stored int32 [r]: where their stored keys
    and values lie, page * page size + slot. pages int32 [p, 3]: a stored page, the request's own
    that it moves to, and the key position of slot 0.
    """

    first_row: int
    stored: Int32
    pages: Int32

    @property
    def num_rows(self) -> int:
        """r: how many of its tokens are recomputed."""
        return len(self.stored)

    def behind(self, num_rows: int) -> "Drift":
        """The same with so many more rows before its first."""
        return replace(self, first_row=self.first_row + num_rows)


@dataclass(frozen=True)
class LinkDrift:
    """A document that drifts, before its pages have numbers.

    first_row: of its computed tokens. stored: for each of them its page among `pages` and slot.
    pages: of each of its pages, all private, the place in the link's `pages` and the key position
    of slot 0.
    """

    first_row: int
    stored: list[tuple[int, int]]
    pages: list[tuple[int, int]]

    def bind(self, stored: Sequence[int | None], own: Sequence[int], page_size: int) -> Drift:
        """With the numbers of pages: those of the chunks and those of the request's table."""
        pages = np.array([(stored[place], own[place], key) for place, key in self.pages], np.int32)
        page, slot = np.array(self.stored, np.int32).T
        return Drift(self.first_row, pages[page, 0] * page_size + slot, pages)


def drifting_documents(
    chunks: Sequence[PlacedChunk], chosen: Sequence[Indices]
) -> list[int | None]:
    """For each chunk the number of its document, if that moves by what is recomputed of it."""
    numbers = documents(chunks)
    computed, cached = Counter[int](), Counter[int]()
    for number, chunk, indices in zip(numbers, chunks, chosen, strict=True):
        computed[number] += len(indices)
        cached[number] += chunk.num_tokens - len(indices)
    return [n if computed[n] >= MIN_DRIFT_ROWS and cached[n] else None for n in numbers]

"""One step's inputs as host arrays: the tables that every runner reads. No device here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from legokv.link.drift import Drift
from legokv.model.dtypes import Int32


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one sequence to compute in one step.

    token_ids, positions, key_positions, slots: int32 [t]; `table` int32 [p, 4] with rows (page,
    base, absolute position of slot 0, filled slots), as `StepBatch` describes them.
    """

    token_ids: Int32
    positions: Int32
    key_positions: Int32
    slots: Int32
    table: Int32
    drifts: tuple[Drift, ...] = ()


@dataclass(frozen=True)
class StepBatch:
    """What one step of the model reads; T tokens of B sequences, P pages the longest can see.

    | field           | int32 shape | meaning                                                    |
    |-----------------|-------------|------------------------------------------------------------|
    | `input_ids`     | [T]         | sequences one after another, positions ascending in each   |
    | `positions`     | [T]         | absolute position in the request                           |
    | `key_positions` | [T]         | position in the token's own chunk: what its key rotates by |
    | `slots`         | [T]         | where K and V are written: page * page size + slot         |
    | `query_start`   | [B + 1]     | token range of each sequence                               |
    | `pages`         | [B, P, 4]   | page, base, absolute position of slot 0, filled (0: none)  |
    | `logit_rows`    | [B]         | rows whose logits are wanted: each sequence's last         |

    `drifts` are moved in each layer before its attention, in the order of their rows.
    """

    input_ids: Int32
    positions: Int32
    key_positions: Int32
    slots: Int32
    query_start: Int32
    pages: Int32
    logit_rows: Int32
    drifts: tuple[Drift, ...] = ()


def visible(table: Int32, last_position: int) -> Int32:
    """The part of a page table that tokens up to `last_position` can see: int32 [p, 4].

    `filled` is cut to slots at or before that position, pages past it are dropped. So a table
    may list pages that later steps will fill.
    """
    filled = np.minimum(table[:, 3], last_position + 1 - table[:, 2])
    seen = filled > 0
    rows = table[seen]
    rows[:, 3] = filled[seen]
    return rows


@dataclass
class _SeenTable:
    """What is seen of a table up to position `last`: so many rows of a step's.

    The first `num_whole` of the `table`, `num_settled` of those seen, are the same for all later
    positions. Up to before position `until` only how far the next of them is filled changes, if it
    is seen: from position `open_from` on.
    """

    table: Int32
    last: int = -1
    num_seen: int = 0
    num_whole: int = 0
    num_settled: int = 0
    open_from: int | None = None
    until: int = 0

    def see(self, last: int) -> Int32:
        """What is seen up to `last`, behind what was settled before: int32 [p, 4]."""
        rest = self.table[self.num_whole :]
        seen = visible(rest, last)
        self.last, self.num_seen = last, self.num_settled + len(seen)
        return seen

    def settle(self) -> None:
        """Note what no later position changes."""
        rest = self.table[self.num_whole :]
        is_open = rest[:, 2] + rest[:, 3] > self.last + 1
        num_whole = int(is_open.argmax()) if is_open.any() else len(rest)
        self.num_settled += int(np.count_nonzero(rest[:num_whole, 3] > 0))
        self.num_whole += num_whole
        self._expect(rest[num_whole:])

    def _expect(self, rest: Int32) -> None:
        self.open_from, self.until = None, np.iinfo(np.int32).max
        if not len(rest):
            return
        first, filled = int(rest[0, 2]), int(rest[0, 3])
        others = int(rest[1:, 2].min()) if len(rest) > 1 else self.until
        is_seen = first <= self.last
        self.open_from = first if is_seen else None
        self.until = min(others, first + filled if is_seen else first)


class PageTables:
    """The page tables of a step, kept for the next: rows that cannot change are not read again.

    `num_rows_read` counts those that were.
    """

    def __init__(self) -> None:
        self.num_rows_read = 0
        self._tables: list[_SeenTable] = []
        self._pages = np.zeros((0, 0, 4), np.int32)

    def of(self, pieces: Sequence[Piece]) -> Int32:
        """A batch's `pages` [B, P, 4], which the next call may write to."""
        before = {id(seen.table): row for row, seen in enumerate(self._tables)}
        sources = [before.pop(id(piece.table), None) for piece in pieces]
        tables, news = [], []
        for row, piece in enumerate(pieces):
            last, source = int(piece.positions[-1]), sources[row]
            seen = _SeenTable(piece.table) if source is None else self._tables[source]
            if last < seen.last:
                seen, sources[row] = _SeenTable(piece.table), None
            tables.append(seen)
            news.append(self._new(seen, last))
        self._make_room(sources, tables, news)
        for row, (seen, new) in enumerate(zip(tables, news, strict=True)):
            if new is not None:
                self._pages[row, seen.num_settled : seen.num_seen] = new
                seen.settle()
            elif seen.open_from is not None:
                self._pages[row, seen.num_settled, 3] = seen.last + 1 - seen.open_from
        self._tables = tables
        return self._pages

    def _new(self, seen: _SeenTable, last: int) -> Int32 | None:
        """The rows to write behind those that are settled; None if only one is filled further."""
        if last < seen.until:
            seen.last = last
            return None
        self.num_rows_read += len(seen.table) - seen.num_whole
        return seen.see(last)

    def _make_room(
        self,
        sources: Sequence[int | None],
        tables: Sequence[_SeenTable],
        news: Sequence[Int32 | None],
    ) -> None:
        """Give each row of the step what was known of it, and zeros behind; in place if it fits."""
        num_rows = max(seen.num_seen for seen in tables)
        is_same = self._pages.shape[:2] == (len(tables), num_rows)
        if is_same and all(source in (None, row) for row, source in enumerate(sources)):
            for row, source in enumerate(sources):
                if source is None:
                    self._pages[row] = 0
            return
        pages = np.zeros((len(tables), num_rows, 4), np.int32)
        for row, (source, seen, new) in enumerate(zip(sources, tables, news, strict=True)):
            if source is not None:
                end = seen.num_seen if new is None else seen.num_settled
                pages[row, :end] = self._pages[source, :end]
        self._pages = pages


def step_batch(pieces: Sequence[Piece], tables: PageTables | None = None) -> StepBatch:
    """Pieces of different sequences as one batch; page tables are padded with empty rows.

    With the `tables` that the step before had, only what changed is made; its batch is over then.
    """
    lengths = np.array([len(piece.token_ids) for piece in pieces], np.int32)
    query_start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return StepBatch(
        input_ids=np.concatenate([piece.token_ids for piece in pieces]),
        positions=np.concatenate([piece.positions for piece in pieces]),
        key_positions=np.concatenate([piece.key_positions for piece in pieces]),
        slots=np.concatenate([piece.slots for piece in pieces]),
        query_start=query_start,
        pages=(tables or PageTables()).of(pieces),
        logit_rows=query_start[1:] - 1,
        drifts=tuple(
            drift.behind(int(start))
            for piece, start in zip(pieces, query_start[:-1], strict=True)
            for drift in piece.drifts
        ),
    )

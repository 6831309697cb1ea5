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


def step_batch(pieces: Sequence[Piece]) -> StepBatch:
    """Pieces of different sequences as one batch; page tables are padded with empty rows."""
    lengths = np.array([len(piece.token_ids) for piece in pieces], np.int32)
    query_start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    tables = [visible(piece.table, int(piece.positions[-1])) for piece in pieces]
    pages = np.zeros((len(pieces), max(len(table) for table in tables), 4), np.int32)
    for row, table in zip(pages, tables, strict=True):
        row[: len(table)] = table
    return StepBatch(
        input_ids=np.concatenate([piece.token_ids for piece in pieces]),
        positions=np.concatenate([piece.positions for piece in pieces]),
        key_positions=np.concatenate([piece.key_positions for piece in pieces]),
        slots=np.concatenate([piece.slots for piece in pieces]),
        query_start=query_start,
        pages=pages,
        logit_rows=query_start[1:] - 1,
        drifts=tuple(
            drift.behind(int(start))
            for piece, start in zip(pieces, query_start[:-1], strict=True)
            for drift in piece.drifts
        ),
    )

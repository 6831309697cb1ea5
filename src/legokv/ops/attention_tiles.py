"""A step's tables cut into tiles: which rows attend to which keys, turned how, masked how.

Made once a step and read by every layer. A tile's keys share one base, so its queries are turned
once; rows past a chunk see all of it and need no mask, and no row is set against keys after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from legokv.ops.rotary import cos_sin

Turn = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Tile:
    """Some of a sequence's rows against some of its keys (both as ranges of the sequence's own).

    turn: cosine and sine, float32 [rows, 1, D/2], of positions - base. Masked by `causal` (row i
    sees keys up to i), by `mask` [rows, keys] added to the scores, or not at all.
    """

    rows: slice
    keys: slice
    turn: Turn
    causal: bool = False
    mask: Tensor | None = None


@dataclass(frozen=True)
class SequenceTiles:
    """One sequence: its `tokens` in the step, and where its K keys lie, in its table's order.

    key_rows int64 [K]: rows of the pool seen as [N * 2 * S, G * D]; the value is S rows further.
    """

    tokens: slice
    key_rows: Tensor
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class StepTables:
    """What `attend_in_place` reads besides a layer's own q, k, v and pool."""

    key_positions: Tensor
    slots: Tensor
    inv_freq: Tensor
    sequences: tuple[SequenceTiles, ...]


@dataclass(frozen=True)
class _Keys:
    """A sequence's keys: position and base, int64 [K], pages of one chunk next to each other."""

    rows: Tensor
    positions: Tensor
    bases: Tensor


def step_tables(  # noqa: PLR0913 - the op's own tables
    positions: Tensor,
    key_positions: Tensor,
    slots: Tensor,
    query_start: Tensor,
    pages: Tensor,
    inv_freq: Tensor,
    *,
    page_size: int,
    dtype: torch.dtype,
) -> StepTables:
    """Tiles for the step's inputs (see the op); masks are of `dtype`."""
    sequences = []
    for b, (start, end) in enumerate(pairwise(query_start.tolist())):
        keys = _visible_keys(pages[b], page_size)
        tiles = tuple(_tiles(positions[start:end].long(), keys, inv_freq, dtype))
        sequences.append(SequenceTiles(slice(start, end), keys.rows, tiles))
    return StepTables(key_positions, slots, inv_freq, tuple(sequences))


def _visible_keys(table: Tensor, page_size: int) -> _Keys:
    page, base, first, filled = table[table[:, 3] > 0].long().unbind(1)
    slot = torch.arange(page_size, device=table.device)
    used = slot < filled[:, None]
    return _Keys(
        rows=(page[:, None] * 2 * page_size + slot)[used],
        positions=(first[:, None] + slot)[used],
        bases=base[:, None].expand_as(used)[used],
    )


def _tiles(positions: Tensor, keys: _Keys, inv_freq: Tensor, dtype: torch.dtype) -> Iterator[Tile]:
    for group in _groups_of_one_base(keys):
        at = keys.positions[group]
        cos, sin = cos_sin((positions - keys.bases[group.start])[:, None], inv_freq)
        # The row at the last key's own position sees all keys of the group too.
        inside, after = torch.searchsorted(positions, at[[0, -1]]).tolist()
        if after < len(positions):
            yield Tile(slice(after, len(positions)), group, (cos[after:], sin[after:]))
        if inside < after:
            rows = slice(inside, after)
            yield from _inner_tiles(rows, group, positions[rows], at, (cos[rows], sin[rows]), dtype)


def _groups_of_one_base(keys: _Keys) -> Iterator[slice]:
    """Ranges of neighbouring keys that share a base and ascend by position without a gap."""
    step = (keys.positions.diff() != 1) | (keys.bases.diff() != 0)
    edges = [0, *(step.nonzero().flatten() + 1).tolist(), len(keys.positions)]
    yield from (slice(start, end) for start, end in pairwise(edges) if end > start)


def _inner_tiles(
    rows: slice,
    group: slice,
    positions: Tensor,
    at: Tensor,
    turn: Turn,
    dtype: torch.dtype,
) -> Iterator[Tile]:
    """Rows that stand inside a group: keys before them all unmasked, the others masked."""
    before = int(positions[0] - at[0])
    last = int(positions[-1] - at[0]) + 1
    if before:
        yield Tile(rows, slice(group.start, group.start + before), turn)
    keys = slice(group.start + before, group.start + last)
    if last - before == len(positions):
        yield Tile(rows, keys, turn, causal=True)
        return
    hidden = at[before:last] > positions[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
    yield Tile(rows, keys, turn, mask=mask)

"""The form of legolink_attention that a torch device runs: in place, its tables made once a step.

It gathers the keys a sequence sees, turns that copy to absolute positions, and leaves the stored
ones alone, so that torch's fused attention serves all chunks in one call.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from legokv.ops.legolink_attention import write_keys_and_values
from legokv.ops.rotary import cos_sin, rotate


@dataclass(frozen=True)
class SequenceTables:
    """What one sequence's attention reads, K visible keys in the order of its page table.

    key_rows int64 [K]: rows of the pool seen as [N * 2 * S, G, D]; cos, sin float32 [K, 1, D/2] of
    the keys' bases, None when all bases are 0; mask [t, K] added to scores, None when all is seen.
    """

    tokens: slice
    key_rows: Tensor
    base_cos_sin: tuple[Tensor, Tensor] | None
    mask: Tensor | None


@dataclass(frozen=True)
class StepTables:
    """A step's tables in the shape `attend_in_place` wants; the same for all layers."""

    query_cos_sin: tuple[Tensor, Tensor]
    key_positions: Tensor
    slots: Tensor
    inv_freq: Tensor
    sequences: list[SequenceTables]
    page_size: int


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
    """Derive once what every layer's attention needs from the step's inputs (see the op)."""
    starts = query_start.tolist()
    sequences = [
        _sequence_tables(
            slice(starts[b], starts[b + 1]), positions, pages[b], inv_freq, page_size, dtype
        )
        for b in range(len(starts) - 1)
    ]
    query_cos_sin = cos_sin(positions[:, None], inv_freq)
    return StepTables(query_cos_sin, key_positions, slots, inv_freq, sequences, page_size)


def _sequence_tables(
    tokens: slice,
    positions: Tensor,
    table: Tensor,
    inv_freq: Tensor,
    page_size: int,
    dtype: torch.dtype,
) -> SequenceTables:
    page, base, first, filled = table[table[:, 3] > 0].long().unbind(1)
    slot = torch.arange(page_size, device=table.device)
    used = slot < filled[:, None]
    key_rows = (page[:, None] * 2 * page_size + slot)[used]
    key_positions = (first[:, None] + slot)[used]
    bases = base[:, None].expand_as(used)[used]
    seen = key_positions <= positions[tokens, None]
    mask = None
    if not bool(seen.all()):
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        mask.masked_fill_(~seen, -torch.inf)
    turned = cos_sin(bases[:, None], inv_freq) if bool(bases.any()) else None
    return SequenceTables(tokens, key_rows, turned, mask)


def attend_in_place(
    q: Tensor, k: Tensor, v: Tensor, pool: Tensor, tables: StepTables, scale: float
) -> Tensor:
    """legolink_attention's output [T, H, D], its keys and values written into `pool` itself.

    Every token must see at least its own key, as tokens of a step do.
    """
    write_keys_and_values(k, v, pool, tables.key_positions, tables.slots, tables.inv_freq)
    q = rotate(q, *tables.query_cos_sin).to(q.dtype)
    out = torch.empty_like(q)
    for sequence in tables.sequences:
        out[sequence.tokens] = _attend_sequence(q[sequence.tokens], pool, sequence, scale)
    return out


def _attend_sequence(q: Tensor, pool: Tensor, tables: SequenceTables, scale: float) -> Tensor:
    num_kv_heads, head_size = pool.shape[3:]
    rows = pool.view(-1, num_kv_heads * head_size)
    keys = rows.index_select(0, tables.key_rows).view(-1, num_kv_heads, head_size)
    values = rows.index_select(0, tables.key_rows + pool.shape[2]).view_as(keys)
    if tables.base_cos_sin is not None:
        keys = rotate(keys, *tables.base_cos_sin).to(keys.dtype)
    # [G, H/G, t, D] against [G, 1, K, D]: query heads of a group read one copy of its keys.
    grouped = q.view(len(q), num_kv_heads, -1, head_size).permute(1, 2, 0, 3)
    shape = (num_kv_heads, grouped.shape[1], keys.shape[0], head_size)
    out = F.scaled_dot_product_attention(
        grouped,
        keys.transpose(0, 1)[:, None].expand(shape),
        values.transpose(0, 1)[:, None].expand(shape),
        attn_mask=tables.mask,
        scale=scale,
    )
    return out.permute(2, 0, 1, 3).flatten(1, 2)

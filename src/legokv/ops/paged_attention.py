"""The form of legolink_attention that runs on a CPU: in place, over tiles made once a step.

Stored keys are read as they are. Each tile is one call of torch's fused attention; tiles of a row
are joined by their log-sum-exps, as in FlashAttention (arXiv 2205.14135, section 3).
"""

import torch
from torch import Tensor

from legokv.ops.attention_tiles import SequenceTiles, StepTables, Tile
from legokv.ops.legolink_attention import write_keys_and_values
from legokv.ops.rotary import rotate


def attend_in_place(
    q: Tensor, k: Tensor, v: Tensor, pool: Tensor, tables: StepTables, scale: float
) -> Tensor:
    """legolink_attention's output [T, H, D], its keys and values written into `pool` itself."""
    write_keys_and_values(k, v, pool, tables.key_positions, tables.slots, tables.inv_freq)
    out = torch.empty_like(q)
    for sequence in tables.sequences:
        out[sequence.tokens] = _attend_sequence(q[sequence.tokens], pool, sequence, scale)
    return out


def _attend_sequence(q: Tensor, pool: Tensor, sequence: SequenceTiles, scale: float) -> Tensor:
    num_kv_heads, head_size = pool.shape[3:]
    rows = pool.view(-1, num_kv_heads * head_size)
    keys, values = (
        rows.index_select(0, at).view(-1, num_kv_heads, head_size).transpose(0, 1)
        for at in (sequence.key_rows, sequence.key_rows + pool.shape[2])
    )
    parts = [_attend_tile(q, keys, values, tile, scale) for tile in sequence.tiles]
    out = _joined(parts, sequence.tiles, q.shape, num_kv_heads)
    return out.permute(2, 0, 1, 3).flatten(1, 2)


def _attend_tile(
    q: Tensor, keys: Tensor, values: Tensor, tile: Tile, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [G, H/G, rows, D] and log-sum-exp float32 [G, H/G, rows] of one tile."""
    num_kv_heads, head_size = keys.shape[0], keys.shape[2]
    turned = rotate(q[tile.rows], *tile.turn).to(q.dtype)
    heads = turned.view(len(turned), num_kv_heads, -1, head_size).permute(1, 2, 0, 3)
    shape = heads.shape
    if not tile.causal and tile.mask is None:
        # A group's query heads as rows of one head: longer blocks, and its keys are read once.
        heads = heads.reshape(num_kv_heads, 1, -1, head_size)
    spread = (num_kv_heads, heads.shape[1], -1, head_size)
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        heads,
        keys[:, None, tile.keys].expand(spread),
        values[:, None, tile.keys].expand(spread),
        is_causal=tile.causal,
        attn_mask=tile.mask,
        scale=scale,
    )
    return out.reshape(shape), log_sum.reshape(shape[:-1])


def _joined(
    parts: list[tuple[Tensor, Tensor]], tiles: tuple[Tile, ...], shape: torch.Size, groups: int
) -> Tensor:
    """Each row's tiles weighted by their share of its softmax: [G, H/G, t, D]; 0 for no tile."""
    if len(parts) == 1 and tiles[0].rows == slice(0, shape[0]):
        return parts[0][0]
    size = (groups, shape[1] // groups, shape[0])
    log_sums = torch.full((len(parts), *size), -torch.inf)
    for row, tile, (_, log_sum) in zip(log_sums, tiles, parts, strict=True):
        row[:, :, tile.rows] = log_sum
    weights = log_sums.softmax(0).nan_to_num_(0.0)
    joined = torch.zeros(*size, shape[2])
    for weight, tile, (out, _) in zip(weights, tiles, parts, strict=True):
        joined[:, :, tile.rows].addcmul_(out, weight[:, :, tile.rows, None])
    return joined.to(parts[0][0].dtype) if parts else joined

"""Attention over linked pages: stored keys keep their rotation, the query turns to each chunk.

The body here is the definition, written to be read. `paged_attention.py` is the form that runs.
"""

import torch
from torch import Tensor

from legokv.errors import LaunchRefused
from legokv.ops.rotary import cos_sin, rotate


@torch.library.custom_op("legokv::legolink_attention", mutates_args=())
def legolink_attention(  # noqa: PLR0913 - one graph node carries one step's tables
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool: Tensor,
    positions: Tensor,
    key_positions: Tensor,
    slots: Tensor,
    query_start: Tensor,
    pages: Tensor,
    inv_freq: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention output [T, H, D] and the pool with this step's keys and values in it.

    q [T, H, D], k and v [T, G, D] are not rotated yet. k is rotated by `key_positions` [T]; k and v
    go to `slots` [T] (page * S + slot; a negative one writes nothing). Tokens of sequence b,
    query_start[b] to query_start[b + 1], then attend to every filled slot of pages[b] whose
    absolute position is not past their own. A row of `pages` [B, P, 4] is (page, base, absolute
    position of slot 0, filled slots). With keys stored at chunk-local positions the score is

        scale * R(position - base) q . stored key

    which equals that of rotating both by absolute position, as RoPE depends on differences only.
    Softmax in float32; query head h reads KV head h // (H / G); a token that sees no key gives 0.
    """
    pool = pool.clone()
    write_keys_and_values(k, v, pool, key_positions, slots, inv_freq)
    out = torch.zeros_like(q)
    starts = query_start.tolist()
    for b in range(pages.shape[0]):
        rows = pages[b][pages[b, :, 3] > 0]
        for t in range(starts[b], starts[b + 1]):
            out[t] = attend_one(q[t], pool, rows, positions[t], inv_freq, scale).to(q.dtype)
    return out, pool


def write_keys_and_values(
    k: Tensor, v: Tensor, pool: Tensor, key_positions: Tensor, slots: Tensor, inv_freq: Tensor
) -> None:
    """Rotate k by `key_positions` and put k and v into their slots; negative slots are skipped."""
    kept = slots >= 0
    cos, sin = cos_sin(key_positions[kept, None], inv_freq)
    page_size = pool.shape[2]
    page, slot = slots[kept].long() // page_size, slots[kept].long() % page_size
    pool[page, 0, slot] = rotate(k[kept], cos, sin).to(pool.dtype)
    pool[page, 1, slot] = v[kept].to(pool.dtype)


def attend_one(
    q: Tensor, pool: Tensor, rows: Tensor, position: Tensor, inv_freq: Tensor, scale: float
) -> Tensor:
    """One token's output, float32 [H, D], over page `rows` [P, 4]."""
    weights = weights_of_one(q, pool, rows, position, inv_freq, scale)
    values = pool[rows[:, 0].long(), 1].float()
    values = values.masked_fill(~_seen(rows, position, pool.shape[2])[:, :, None, None], 0.0)
    return torch.einsum("grps,psgd->grd", weights, values).reshape(-1, pool.shape[4])


def weights_of_one(
    q: Tensor, pool: Tensor, rows: Tensor, position: Tensor, inv_freq: Tensor, scale: float
) -> Tensor:
    """What one token's heads weigh each slot, float32 [G, H/G, P, S]."""
    page_size, num_kv_heads, head_size = pool.shape[2:]
    groups = q.shape[0] // num_kv_heads
    cos, sin = cos_sin((position - rows[:, 1])[:, None, None], inv_freq)
    rotated = rotate(q, cos, sin).view(-1, num_kv_heads, groups, head_size)
    keys = pool[rows[:, 0].long(), 0].float()
    scores = scale * torch.einsum("pgrd,psgd->grps", rotated, keys)
    scores = scores.masked_fill(~_seen(rows, position, page_size), -torch.inf).flatten(2)
    return scores.softmax(-1).nan_to_num(0.0).view(num_kv_heads, groups, -1, page_size)


def _seen(rows: Tensor, position: Tensor, page_size: int) -> Tensor:
    """Which slots of page rows [P, 4] a token sees, bool [P, S]."""
    slot = torch.arange(page_size, device=rows.device)
    return (slot < rows[:, 3:]) & (rows[:, 2:3] + slot <= position)


@legolink_attention.register_fake
def _(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool: Tensor,
    positions: Tensor,
    key_positions: Tensor,
    slots: Tensor,
    query_start: Tensor,
    pages: Tensor,
    inv_freq: Tensor,
    scale: float,
):
    return torch.empty_like(q), torch.empty_like(pool)


@torch.library.custom_op("legokv::packed_legolink_attention", mutates_args=())
def packed_legolink_attention(  # noqa: PLR0913 - one graph node carries one step's tables
    qkv: Tensor,
    pool: Tensor,
    positions: Tensor,
    key_positions: Tensor,
    slots: Tensor,
    query_start: Tensor,
    pages: Tensor,
    inv_freq: Tensor,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """legolink_attention of a product [T, H + 2 G, D] whose heads are q's, then k's, then v's.

    LaunchRefused unless there are `num_heads` of q and the pool's of k and v, and no more.
    """
    q, k, v = parts_of(qkv, num_heads, pool)
    out, pool_out = legolink_attention(
        q, k, v, pool, positions, key_positions, slots, query_start, pages, inv_freq, scale
    )
    return out, pool_out


def parts_of(qkv: Tensor, num_heads: int, pool: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, H, D], k and v [T, G, D] of a product [T, H + 2 G, D], for a pool of G KV heads."""
    num_kv_heads, head_size = pool.shape[3:]
    if qkv.shape[1:] != (num_heads + 2 * num_kv_heads, head_size):
        raise LaunchRefused(
            f"qkv has {qkv.shape[1]} heads of {qkv.shape[2]}, but {num_heads} of q and twice "
            f"{num_kv_heads} KV heads of {head_size} make {num_heads + 2 * num_kv_heads}"
        )
    q, k, v = torch.split(qkv, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    return q, k, v


@packed_legolink_attention.register_fake
def _(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    qkv: Tensor,
    pool: Tensor,
    positions: Tensor,
    key_positions: Tensor,
    slots: Tensor,
    query_start: Tensor,
    pages: Tensor,
    inv_freq: Tensor,
    num_heads: int,
    scale: float,
):
    return torch.empty_like(qkv[:, :num_heads]), torch.empty_like(pool)

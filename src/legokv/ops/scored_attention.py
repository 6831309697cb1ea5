"""Attention that also says what it attended to: each key's weights, summed over rows and heads.

The op's body is the definition, written to be read; `key_mass` is the form that runs in torch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from legokv.ops.legolink_attention import legolink_attention, parts_of, weights_of_one
from legokv.ops.rotary import cos_sin, rotate

_ROWS_AT_ONCE = 64
"""Rows whose weights over all keys are in memory together."""


@torch.library.custom_op("legokv::scored_attention", mutates_args=())
def scored_attention(  # noqa: PLR0913 - one graph node carries one step's tables
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
    scoring: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """legolink_attention's output and pool, and each slot's mass, float32 [B, P, S].

    `scoring` int32 [B] is how many of each sequence's last tokens score keys. A slot of pages[b]
    has as mass the sum of the softmax weights that it gets from all query heads of those tokens; 0
    where none of them sees it. A sequence's masses so add up to H times its scoring tokens.
    """
    out, pool = legolink_attention(
        q, k, v, pool, positions, key_positions, slots, query_start, pages, inv_freq, scale
    )
    mass = torch.zeros(*pages.shape[:2], pool.shape[2], device=q.device)
    for b, end in enumerate(query_start[1:].tolist()):
        used = pages[b, :, 3] > 0
        for t in range(end - int(scoring[b]), end):
            mass[b, used] += weights_of_one(
                q[t], pool, pages[b][used], positions[t], inv_freq, scale
            ).sum((0, 1))
    return out, pool, mass


@scored_attention.register_fake
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
    scoring: Tensor,
    scale: float,
):
    mass = q.new_empty((*pages.shape[:2], pool.shape[2]), dtype=torch.float32)
    return torch.empty_like(q), torch.empty_like(pool), mass


@torch.library.custom_op("legokv::packed_scored_attention", mutates_args=())
def packed_scored_attention(  # noqa: PLR0913 - one graph node carries one step's tables
    qkv: Tensor,
    pool: Tensor,
    positions: Tensor,
    key_positions: Tensor,
    slots: Tensor,
    query_start: Tensor,
    pages: Tensor,
    inv_freq: Tensor,
    scoring: Tensor,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """scored_attention of a product, as packed_legolink_attention takes it."""
    q, k, v = parts_of(qkv, num_heads, pool)
    tables = (positions, key_positions, slots, query_start, pages, inv_freq, scoring)
    out, pool_out, mass = scored_attention(q, k, v, pool, *tables, scale)
    return out, pool_out, mass


@packed_scored_attention.register_fake
def _(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    qkv: Tensor,
    pool: Tensor,
    positions: Tensor,
    key_positions: Tensor,
    slots: Tensor,
    query_start: Tensor,
    pages: Tensor,
    inv_freq: Tensor,
    scoring: Tensor,
    num_heads: int,
    scale: float,
):
    q = qkv[:, :num_heads]
    mass = q.new_empty((*pages.shape[:2], pool.shape[2]), dtype=torch.float32)
    return torch.empty_like(q), torch.empty_like(pool), mass


def key_mass(  # noqa: PLR0913 - the op's own tables
    q: Tensor,
    pool: Tensor,
    positions: Tensor,
    query_start: Tensor,
    pages: Tensor,
    inv_freq: Tensor,
    scoring: Tensor,
    scale: float,
) -> Tensor:
    """scored_attention's mass over a pool that has the step's keys already."""
    mass = torch.zeros(*pages.shape[:2], pool.shape[2], device=q.device)
    for b, end in enumerate(query_start[1:].tolist()):
        keys = _visible_keys(pool, pages[b], inv_freq)
        for row in range(end - int(scoring[b]), end, _ROWS_AT_ONCE):
            rows = slice(row, min(row + _ROWS_AT_ONCE, end))
            turned = rotate(q[rows], *cos_sin(positions[rows, None], inv_freq)) * scale
            mass[b][keys.used] += keys.mass(turned, positions[rows])
    return mass


@dataclass(frozen=True)
class _Keys:
    """A sequence's keys [n, G, D], rotated by their `positions` [n]; `used` bool [P, S]."""

    used: Tensor
    positions: Tensor
    keys: Tensor

    def mass(self, turned: Tensor, positions: Tensor) -> Tensor:
        """What queries [t, H, D], turned and scaled, weigh each key: float32 [n]."""
        heads = turned.view(len(turned), self.keys.shape[1], -1, self.keys.shape[2])
        scores = torch.einsum("tgrd,ngd->grtn", heads, self.keys)
        hidden = self.positions > positions[:, None]
        return scores.masked_fill_(hidden, -torch.inf).softmax(-1).nan_to_num_(0.0).sum((0, 1, 2))


def _visible_keys(pool: Tensor, table: Tensor, inv_freq: Tensor) -> _Keys:
    page, base, first, filled = table.long().unbind(1)
    slot = torch.arange(pool.shape[2], device=pool.device)
    used = slot < filled[:, None]
    bases = base[:, None].expand_as(used)[used]
    stored = pool[page[:, None].expand_as(used)[used], 0, slot.expand_as(used)[used]]
    turn = cos_sin(bases[:, None], inv_freq)
    return _Keys(used, (first[:, None] + slot)[used], rotate(stored, *turn))

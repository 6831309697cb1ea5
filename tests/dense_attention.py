"""The attention's output in float64 by whole chunks at once, on any device: for long sequences.

`attention_cases.expected_out` says the same by loops, too slow past some hundred keys.
"""

import torch
from attention_cases import Inputs
from torch import Tensor


def dense_out(inputs: Inputs, pool: Tensor) -> Tensor:
    """The attention's output, float64 [T, H, D], over keys and values of `pool`."""
    out = torch.zeros(inputs.q.shape, dtype=torch.float64, device=pool.device)
    starts = inputs.tables.query_start.tolist()
    for b, rows in enumerate(inputs.tables.pages):
        tokens = slice(starts[b], starts[b + 1])
        used = rows[rows[:, 3] > 0].long()
        if len(used):
            out[tokens] = _attend(inputs, pool, tokens, used)
    return out


def _attend(inputs: Inputs, pool: Tensor, tokens: slice, rows: Tensor) -> Tensor:
    positions = inputs.tables.positions[tokens].long()
    q = inputs.q[tokens].double()
    scores, values = [], []
    for base in rows[:, 1].unique():
        turned = _turned(q, positions - base, inputs.tables.inv_freq)
        keys, stored, at = _keys_of(pool, rows[rows[:, 1] == base])
        by_group = turned.view(len(q), pool.shape[3], -1, q.shape[2])
        score = torch.einsum("tgrd,kgd->tgrk", by_group, keys) * inputs.tables.scale
        scores.append(score.masked_fill(at > positions[:, None, None, None], -torch.inf))
        values.append(stored)
    weights = torch.cat(scores, -1).softmax(-1).nan_to_num(0.0)
    return torch.einsum("tgrk,kgd->tgrd", weights, torch.cat(values)).reshape(q.shape)


def _keys_of(pool: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values, float64 [K, G, D], of the filled slots of pages, and their positions."""
    slot = torch.arange(pool.shape[2], device=pool.device)
    filled = slot < rows[:, 3:]
    keys, values = pool[rows[:, 0]].double().unbind(1)
    return keys[filled], values[filled], (rows[:, 2:3] + slot)[filled]


def _turned(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    angle = (positions.float()[:, None] * inv_freq).double()[:, None]
    pairs = torch.complex(*x.chunk(2, dim=-1))
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)

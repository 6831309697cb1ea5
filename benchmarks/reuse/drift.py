"""Drift: what recomputing some tokens of a chunk tells of the keys and values of the others.

The tokens that a link recomputes differ from what is stored of them. Their mean difference, for
each layer and KV head, is added to the keys (before rotation) and values of the chunk's other
tokens. It is shrunk towards 0 by its own noise (James and Stein 1961; positive part).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.reuse.linked_model import LinkedModel, Placed
from legokv.chunks.chunk import Chunk
from legokv.model.decoder import Attention
from legokv.ops.rotary import cos_sin, rotate
from legokv.runners.attention_forms import by_layer


@dataclass(frozen=True)
class _Part:
    """One chunk of a prompt.

    rows: int64 [r], its recomputed tokens among those of the step; at: int64 [r], their numbers
    in the chunk. Pages of the pool: `stored` as compiled, `seen` as the prompt reads them.
    """

    rows: Tensor
    at: Tensor
    start: int
    stored: Tensor
    seen: Tensor


class Drift:
    """A `Watch` of one prompt; the pool is as before when a layer's attention is over."""

    def __init__(self, model: LinkedModel, placed: Placed, chunks: Sequence[Chunk]) -> None:
        self._size = model.page_size
        positions = torch.from_numpy(placed.link.positions).long()
        table = torch.from_numpy(placed.bound.table).long()
        self._parts: list[_Part] = []
        position = 0
        for chunk in chunks:
            end = position + chunk.num_tokens
            rows = ((positions >= position) & (positions < end)).nonzero().flatten()
            if 2 <= len(rows) < chunk.num_tokens:
                inside = (table[:, 2] >= position) & (table[:, 2] < end)
                stored = torch.tensor(model.pages_of(chunk))
                at = positions[rows] - position
                self._parts.append(_Part(rows, at, chunk.start, stored, table[inside, 0]))
            position = end
        longest = max((p.start + len(p.stored) * self._size for p in self._parts), default=0)
        every = torch.arange(longest)[:, None]
        self._turns = by_layer(model.rotations, lambda turn: cos_sin(every, turn.inv_freq))

    def __call__(self, attend: Attention) -> Attention:
        def drifted(
            layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
        ) -> tuple[Tensor, Tensor]:
            # All are found before any is added: chunks may lie in one page twice.
            moves = [self._moves(part, layer, k, v, pool) for part in self._parts]
            before = [pool[part.seen] for part in self._parts]
            for part, (key_move, value_move) in zip(self._parts, moves, strict=True):
                self._add(part, layer, key_move, value_move, pool)
            out, pool = attend(layer, q, k, v, pool)
            for part, pages in zip(self._parts, before, strict=True):
                pool[part.seen] = pages
            return out, pool

        return drifted

    def _moves(
        self, part: _Part, layer: int, k: Tensor, v: Tensor, pool: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is added to keys and to values, float32 [G, D]."""
        cos, sin = self._turns[layer]
        where = part.stored[part.at // self._size], part.at % self._size
        at = part.start + part.at
        # The turn back: what is stored is rotated by its place behind what it was compiled behind.
        keys = rotate(pool[where[0], 0, where[1]], cos[at], -sin[at])
        values = pool[where[0], 1, where[1]].float()
        return shrunk(k[part.rows].float() - keys), shrunk(v[part.rows].float() - values)

    def _add(
        self, part: _Part, layer: int, key_move: Tensor, value_move: Tensor, pool: Tensor
    ) -> None:
        cos, sin = self._turns[layer]
        places = part.start + torch.arange(len(part.seen) * self._size)
        turned = rotate(key_move[None], cos[places], sin[places])
        pages = pool[part.seen].float()
        pages[:, 0] += turned.view(len(part.seen), self._size, *key_move.shape)
        pages[:, 1] += value_move
        pool[part.seen] = pages.to(pool.dtype)


def shrunk(differences: Tensor) -> Tensor:
    """The mean [G, D] of differences [r, G, D], shrunk by its noise; r of at least 2."""
    mean = differences.mean(0)
    noise = differences.var(0).sum(-1, keepdim=True) / len(differences)
    square = mean.square().sum(-1, keepdim=True).clamp_min(1e-12)
    return mean * (1 - noise / square).clamp_min(0)

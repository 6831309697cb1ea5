"""How much attention the last rows of one sequence pay to each key, seen beside a torch step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from legokv.model.decoder import Attention
from legokv.ops.rotary import cos_sin, rotate
from legokv.runners.attention_forms import Rotation, by_layer
from legokv.step.batch import StepBatch

_ROWS_AT_ONCE = 64
"""Rows whose weights over all keys are in memory together, one layer at a time."""


class AttentionMass:
    """Watches a batch of one sequence whose table lists all keys from position 0 on.

    The rows are the last `num_rows`; each key's mass is the mean over layers, heads and rows.
    """

    def __init__(
        self, batch: StepBatch, rotations: Sequence[Rotation], num_rows: int, page_size: int
    ) -> None:
        device = rotations[0].inv_freq.device
        page, base, first, filled = torch.from_numpy(batch.pages[0]).to(device).long().unbind(1)
        slot = torch.arange(page_size, device=device)
        used = slot < filled[:, None]
        order = (first[:, None] + slot)[used].argsort()
        self._pages, bases, self._slots = (
            part.expand_as(used)[used][order] for part in (page[:, None], base[:, None], slot)
        )
        self._num_rows = num_rows
        self._positions = torch.from_numpy(batch.positions).to(device)[-num_rows:].long()
        at = self._positions[:, None]
        self._key_turns = by_layer(rotations, lambda r: cos_sin(bases[:, None], r.inv_freq))
        self._row_turns = by_layer(rotations, lambda r: cos_sin(at, r.inv_freq))
        self._scales = [rotation.scale for rotation in rotations]
        self._total = torch.zeros(len(order), device=device)

    @property
    def mean(self) -> Tensor:
        """float32 [n], by position; sums to 1 when all layers were seen."""
        return self._total / self._num_rows / len(self._scales)

    def watch(self, attend: Attention) -> Attention:
        """The same attention, seen."""

        def watched(
            layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
        ) -> tuple[Tensor, Tensor]:
            out, pool = attend(layer, q, k, v, pool)
            self._add(layer, q[-self._num_rows :], pool)
            return out, pool

        return watched

    def _add(self, layer: int, q: Tensor, pool: Tensor) -> None:
        keys = rotate(pool[self._pages, 0, self._slots], *self._key_turns[layer])
        turned = rotate(q, *self._row_turns[layer]) * self._scales[layer]
        heads = turned.view(len(q), keys.shape[1], -1, keys.shape[2])
        for start in range(0, len(heads), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            at = self._positions[rows]
            scores = torch.einsum("tgrd,ngd->grtn", heads[rows], keys)
            # No key is missing: key i stands at position i.
            later = torch.arange(len(keys), device=keys.device) > at[:, None]
            weights = scores.masked_fill_(later, -torch.inf).softmax(-1)
            self._total += weights.mean((0, 1)).sum(0)

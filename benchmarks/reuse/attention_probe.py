"""Sees the attention that a prompt's last rows pay to every key, while a step computes it."""

import torch
from torch import Tensor

from benchmarks.reuse.keys import key_places
from benchmarks.reuse.linked_model import LinkedModel, Placed
from legokv.model.decoder import Attention
from legokv.ops.rotary import cos_sin, rotate
from legokv.runners.attention_forms import by_layer


class AttentionProbe:
    """A `Watch` of one prompt; afterwards `by_layer` holds float32 [n] for each layer.

    Each is the attention to the n keys, averaged over heads and over the `num_rows` last rows,
    leaving out the `skip_last` rows behind them; it sums to 1.
    """

    def __init__(
        self, model: LinkedModel, placed: Placed, num_rows: int, skip_last: int = 0
    ) -> None:
        self.by_layer: list[Tensor] = []
        self._places = key_places(model, placed)
        num_computed = len(placed.link.token_ids)
        self._rows = slice(num_computed - skip_last - num_rows, num_computed - skip_last)
        self._positions = torch.from_numpy(placed.link.positions)[self._rows].long()
        at = self._positions[:, None]
        self._turns = by_layer(model.rotations, lambda rotation: cos_sin(at, rotation.inv_freq))
        self._scales = [rotation.scale for rotation in model.rotations]

    def __call__(self, attend: Attention) -> Attention:
        def watched(
            layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
        ) -> tuple[Tensor, Tensor]:
            out, pool = attend(layer, q, k, v, pool)
            self.by_layer.append(self._mean_attention(layer, q[self._rows], pool))
            return out, pool

        return watched

    def _mean_attention(self, layer: int, q: Tensor, pool: Tensor) -> Tensor:
        keys = self._places.keys(layer, pool)
        turned = rotate(q, *self._turns[layer]).view(len(q), keys.shape[1], -1, keys.shape[2])
        scores = self._scales[layer] * torch.einsum("tgrd,ngd->grtn", turned, keys)
        # Keys are in order of position and none is missing: key i stands at position i.
        later = torch.arange(len(keys)) > self._positions[:, None]
        return scores.masked_fill_(later, -torch.inf).softmax(-1).mean((0, 1, 2))

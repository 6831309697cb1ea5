"""The same attention through torch: keys gathered, turned to absolute positions, then SDPA.

Only SDPA is timed; gathering and turning, which the paged kernels do without, happen before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from legokv.kernels.gpu import AttentionTables
from legokv.ops.rotary import cos_sin, rotate


@dataclass(frozen=True)
class Gathered:
    """Sequences of equal sizes: q [B, H, t, D]; keys, values [B, G, K, D]; seen or not [t, K]."""

    q: Tensor
    keys: Tensor
    values: Tensor
    visible: Tensor
    scale: float

    @property
    def causal(self) -> bool:
        """Whether the mask is the plain triangle, as for a chunk compiled alone."""
        t, k = self.visible.shape
        return t == k and bool((self.visible == torch.ones_like(self.visible).tril()).all())

    def call(self) -> Callable[[], Tensor]:
        """SDPA with the mask that the step asks for; none where a token sees everything."""
        if self.causal or bool(self.visible.all()):
            return self._without_mask(self.causal)
        # No kernel of SDPA has a mask and grouped heads at once: each query head gets its keys.
        groups = self.q.shape[1] // self.keys.shape[1]
        keys, values = (x.repeat_interleave(groups, 1) for x in (self.keys, self.values))
        return lambda: scaled_dot_product_attention(
            self.q, keys, values, attn_mask=self.visible, scale=self.scale
        )

    def unmasked(self) -> Callable[[], Tensor]:
        """SDPA where every token sees every key: another answer, but the fastest kernel's time."""
        return self._without_mask(False)

    def _without_mask(self, causal: bool) -> Callable[[], Tensor]:
        return lambda: scaled_dot_product_attention(
            self.q, self.keys, self.values, is_causal=causal, scale=self.scale, enable_gqa=True
        )

    def rows(self, out: Tensor) -> Tensor:
        """SDPA's output as the kernels give it, [T, H, D]."""
        return out.transpose(1, 2).flatten(0, 1)


def gather(q: Tensor, pool: Tensor, tables: AttentionTables) -> Gathered:
    """`pool` must have the step's own keys in it; every sequence as many tokens and keys."""
    num_sequences = tables.pages.shape[0]
    tokens = tables.positions.view(num_sequences, -1)
    parts = [_keys_by_position(pool, rows, tables.inv_freq) for rows in tables.pages]
    cos, sin = cos_sin(tables.positions[:, None], tables.inv_freq)
    turned = rotate(q, cos, sin).to(q.dtype).view(*tokens.shape, *q.shape[1:])
    at = torch.arange(parts[0][0].shape[1], device=q.device)
    return Gathered(
        q=turned.transpose(1, 2).contiguous(),
        keys=torch.stack([keys for keys, _ in parts]),
        values=torch.stack([values for _, values in parts]),
        visible=at <= tokens[0][:, None],
        scale=tables.scale,
    )


def _keys_by_position(pool: Tensor, rows: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Keys, turned to absolute positions, and values, both [G, K, D], in order of position."""
    rows = rows[rows[:, 3] > 0].long()
    rows = rows[rows[:, 2].argsort()]
    filled = torch.arange(pool.shape[2], device=pool.device) < rows[:, 3:]
    keys, values = pool[rows[:, 0]].unbind(1)
    cos, sin = cos_sin(rows[:, 1, None, None], inv_freq)
    turned = rotate(keys, cos, sin).to(pool.dtype)
    return tuple(x[filled].transpose(0, 1).contiguous() for x in (turned, values))

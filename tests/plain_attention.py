"""Attention as a textbook has it, without pages: what decoders over pages are held to."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from legokv.model.config import ModelConfig
from legokv.model.decoder import Attention
from legokv.model.rope import inverse_frequencies, score_factor


def plain_causal_attention(config: ModelConfig) -> Attention:
    """Attention over one sequence from position 0, no pages: complex rotation, torch's SDPA."""

    def rotated(x: Tensor, layer: int) -> Tensor:
        rope = config.layers[layer].rope
        frequencies = inverse_frequencies(rope, config.head_size, config.max_positions)
        angles = torch.arange(len(x))[:, None] * torch.tensor(frequencies)
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        turned = torch.complex(*x.chunk(2, dim=-1)) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    def attention(
        layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
    ) -> tuple[Tensor, Tensor]:
        factor = score_factor(config.layers[layer].rope, config.max_positions)
        heads = [x.transpose(0, 1) for x in (rotated(q, layer), rotated(k, layer), v)]
        out = scaled_dot_product_attention(
            *heads, is_causal=True, scale=factor / config.head_size**0.5, enable_gqa=True
        )
        return out.transpose(0, 1), pool

    return attention

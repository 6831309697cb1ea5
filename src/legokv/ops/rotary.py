"""Rotary embedding of heads by integer positions, in float32."""

import torch
from torch import Tensor


def cos_sin(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [..., D/2], of positions int [...] times `inv_freq` [D/2]."""
    angle = positions.to(torch.float32)[..., None] * inv_freq
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., D] rotated, float32. Element i of the first half pairs with i of the second.

    The layout of Hugging Face checkpoints; `cos` and `sin` [..., D/2] broadcast against x.
    """
    first, second = x.to(torch.float32).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

"""A weight as the Q/DQ nodes of a plan have it: FP8 or INT4 numbers and bfloat16 scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from legokv.errors import UnsupportedModel

FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0
FP8_LARGEST_SCALE = 2.0**119
"""Times 448 it is the largest float there is, about."""
INT4_MOST = 7
BLOCKS = (128, 64, 32, 16)
"""Numbers of a row that may share a scale of INT4: what TensorRT-RTX expands in the product."""


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """`numbers` [N, K], FP8 (E4M3) or int8 of -8 to 7; the weight is their product with `scales`.

    `scales` bfloat16: [] one for all, [N] one an output, or [N, K / block] for blocks of a row.
    """

    numbers: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.numbers.shape[0], self.numbers.shape[1])

    @property
    def block(self) -> int:
        """How many numbers of a row share a scale; 0 where all do."""
        return self.shape[1] // self.scales.shape[1] if self.scales.ndim == 2 else 0

    def dense(self) -> Tensor:
        """The weight in bfloat16 [N, K], each number rounded once."""
        scales = self.scales.float()
        if self.block:
            scales = scales.repeat_interleave(self.block, 1)
        elif scales.ndim:
            scales = scales[:, None]
        return (self.numbers.float() * scales).bfloat16()


def fp8_weight(weight: Tensor, name: str) -> QuantisedWeight:
    """`weight` [N, K] rounded to E4M3, a scale an output, which makes its largest number 448.

    UnsupportedModel, with the `name`, for a number that is none.
    """
    wide = _finite(weight, name)
    scales = _scales(wide.abs().amax(1), FP8_MOST)
    return QuantisedWeight(fp8_numbers(wide, scales[:, None]), scales)


def fp8_numbers(values: Tensor, scale: Tensor) -> Tensor:
    """What a QuantizeLinear of E4M3 makes of `values`: what is past 448 is 448."""
    return (values.float() / scale.float()).clamp_(-FP8_MOST, FP8_MOST).to(FP8)


def fake_fp8(x: Tensor, scale: float) -> Tensor:
    """`x`, in its type, by fake quantisation: by `scale` to E4M3 and back, as Q/DQ nodes do it."""
    numbers = fp8_numbers(x, torch.tensor(scale))
    return (numbers.float() * scale).to(x.dtype)


def int4_weight(weight: Tensor, name: str) -> QuantisedWeight:
    """`weight` [N, K] rounded to the nearest of -7 to 7 times its block's scale, a seventh of the
    block's largest number.

    Blocks are of 128 numbers in a row, or of 64, 32 or 16 where K is not two or more of these.
    UnsupportedModel, with the `name`, where it is not of 16 either, or for a number that is none.
    """
    blocks = _finite(weight, name).view(weight.shape[0], -1, int4_block(weight.shape[1], name))
    scales = _scales(blocks.abs().amax(2), INT4_MOST)
    numbers = (blocks / scales.float()[..., None]).round_().clamp_(-INT4_MOST, INT4_MOST)
    return QuantisedWeight(numbers.char().flatten(1), scales)


def int4_block(num_in: int, name: str) -> int:
    """How many numbers share a scale in a row of `num_in`; UnsupportedModel where none may."""
    # Two blocks at least: one scale a row is expanded to bfloat16 in front of the product.
    block = next((size for size in BLOCKS if num_in % size == 0 and num_in > size), None)
    if block is None:
        raise UnsupportedModel(
            f"{name} has rows of {num_in} numbers, which are no two or more blocks of "
            f"{BLOCKS[-1]}: a plan can't have it as INT4; choose --quantize fp8, or none"
        )
    return block


def stacked_quantised(weights: Sequence[QuantisedWeight]) -> QuantisedWeight:
    """Weights of the same K and kind below each other, under one scale where all have the same."""
    numbers = torch.cat([each.numbers.view(torch.uint8) for each in weights])
    scales = [each.scales for each in weights]
    if not weights[0].block:
        scales = [each.scales.expand(each.shape[0]) for each in weights]
    together = torch.cat(scales)
    one = together.ndim == 1 and bool((together == together[0]).all())
    return QuantisedWeight(numbers.view(weights[0].numbers.dtype), together[0] if one else together)


def _finite(weight: Tensor, name: str) -> Tensor:
    wide = weight.float()
    if not bool(wide.isfinite().all()):
        raise UnsupportedModel(
            f"{name} holds numbers that are none: it can't be quantised; fetch the checkpoint "
            "again, or build with --quantize none"
        )
    return wide


def _scales(largest: Tensor, most: float) -> Tensor:
    """What makes the `largest` numbers `most`; zeros, and what is below any scale, are 0 by 1."""
    scales = (largest / most).bfloat16()
    return scales.masked_fill_(scales == 0, 1)

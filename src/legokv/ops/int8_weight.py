"""A weight in a byte a number, in plain PyTorch: 32 in a row share a scale, as in GGUF's Q8_0."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from legokv.errors import UnsupportedModel

BLOCK = 32
_LARGEST = 127
_NAME = "int8"
# So many blocks are looked at before all are: those of a Q8_0 file all are whole multiples.
_SAMPLE = 16


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """`numbers` int8 [N, K] and `scales` float16 [N, K / 32]: the weight is their product, rounded
    to bfloat16 once, wherever it is computed with."""

    numbers: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.numbers.shape[0], self.numbers.shape[1])

    def rows(self, ids: Tensor) -> Tensor:
        """The rows `ids` [T] in bfloat16 [T, K]."""
        return _product(self.numbers[ids], self.scales[ids])

    def dense(self) -> Tensor:
        """The weight in bfloat16 [N, K]."""
        return _product(self.numbers, self.scales)


class Int8Embedding(nn.Module):
    """nn.Embedding over rows of an int8 weight."""

    def __init__(self, weight: Int8Weight) -> None:
        super().__init__()
        self.int8 = weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.int8.rows(ids)


def stacked(weights: list[Int8Weight]) -> Int8Weight:
    """Weights of the same K below each other."""
    return Int8Weight(
        torch.cat([each.numbers for each in weights]), torch.cat([each.scales for each in weights])
    )


def int8_weight(weight: Tensor, name: str) -> Int8Weight:
    """`weight` [N, K] in bytes: a block's scale is a 127th of its largest number, in float16.

    What came out of Q8_0 blocks is kept exactly, also where no number of a block is 127.
    UnsupportedModel, with the `name`, where K is no multiple of 32, a number is none, or one is too
    large for a float16 scale.
    """
    num_columns, num_products = weight.shape
    if num_products % BLOCK:
        raise UnsupportedModel(
            f"{name} has rows of {num_products} numbers, which are no blocks of {BLOCK}: it can't "
            f"be kept as {_NAME}; build with --weights model"
        )
    blocks = weight.float().view(-1, BLOCK)
    scales = (blocks.abs().amax(1) / _LARGEST).half()
    if not bool(scales.isfinite().all()):
        raise UnsupportedModel(
            f"{name} holds numbers that are none or above {_LARGEST * 65504}: it can't be kept as "
            f"{_NAME}; fetch the checkpoint again, or build with --weights model"
        )
    numbers = _numbers(blocks, scales)
    _keep_multiples(blocks, numbers, scales)
    shape = (num_columns, num_products // BLOCK)
    return Int8Weight(numbers.view(num_columns, num_products), scales.view(shape))


def _numbers(blocks: Tensor, scales: Tensor) -> Tensor:
    # A block of zeros, or of numbers below any scale, has scale 0: they are 0 by 1, too.
    wide = scales.float().masked_fill_(scales == 0, 1)[:, None]
    return (blocks / wide).round_().clamp_(-_LARGEST, _LARGEST).char()


def _keep_multiples(blocks: Tensor, numbers: Tensor, scales: Tensor) -> None:
    """Give blocks that are whole multiples of another float16 those multiples, in place."""
    some = blocks[:: -(-len(blocks) // _SAMPLE)]
    if not bool(_multiples(some)[1].all()):
        return
    exact = (numbers.float() * scales.float()[:, None] == blocks).all(1)
    odd = (~exact).nonzero()[:, 0]
    own_scales, is_multiple = _multiples(blocks[odd])
    odd, own_scales = odd[is_multiple], own_scales[is_multiple]
    scales[odd] = own_scales
    numbers[odd] = (blocks[odd] / own_scales.float()[:, None]).round_().char()


def _multiples(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """For each block a scale that makes all its numbers whole, -128 to 127, and if there is one."""
    largest = blocks.abs().amax(1)
    scales, is_multiple = torch.zeros_like(largest).half(), torch.zeros_like(largest).bool()
    # A negative scale only where 128 of it is in the block: it has -128 alone.
    for most in (*range(_LARGEST, 0, -1), _LARGEST + 1, -_LARGEST - 1):
        scale = (largest / most).half()
        wide = scale.float().masked_fill_(scale == 0, 1)[:, None]
        whole = (blocks / wide).round_().clamp_(-_LARGEST - 1, _LARGEST)
        fits = ~is_multiple & (whole * wide == blocks).all(1)
        scales[fits], is_multiple[fits] = scale[fits], True
    return scales, is_multiple


def _product(numbers: Tensor, scales: Tensor) -> Tensor:
    blocks = numbers.view(*scales.shape, BLOCK).float() * scales.float()[..., None]
    return blocks.flatten(-2).bfloat16()

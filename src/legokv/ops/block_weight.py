"""A weight in 8 or 4 bits a number, in plain PyTorch: 32 in a row share a scale, as in GGUF's
Q8_0 and Q4_0."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from legokv.errors import UnsupportedModel

BLOCK = 32
# So many blocks are looked at before all are: those of such a file all are whole multiples.
_SAMPLE = 16


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """`numbers` int8 [N, K] and `scales` float16 [N, K / 32]: the weight is their product, rounded
    to bfloat16 once, wherever it is computed with: to the nearest, between two away from zero. Of 4
    `bits` numbers are -8 to 7."""

    numbers: Tensor
    scales: Tensor
    bits: int = 8

    @property
    def shape(self) -> tuple[int, int]:
        return (self.numbers.shape[0], self.numbers.shape[1])

    def rows(self, ids: Tensor) -> Tensor:
        """The rows `ids` [T] in bfloat16 [T, K]."""
        return _product(self.numbers[ids], self.scales[ids])

    def dense(self) -> Tensor:
        """The weight in bfloat16 [N, K]."""
        return _product(self.numbers, self.scales)


class BlockEmbedding(nn.Module):
    """nn.Embedding over rows of a weight in blocks."""

    def __init__(self, weight: BlockWeight) -> None:
        super().__init__()
        self.blocks = weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.blocks.rows(ids)


def stacked(weights: list[BlockWeight]) -> BlockWeight:
    """Weights of the same K and bits below each other."""
    return BlockWeight(
        torch.cat([each.numbers for each in weights]),
        torch.cat([each.scales for each in weights]),
        weights[0].bits,
    )


def block_weight(weight: Tensor, name: str, bits: int = 8) -> BlockWeight:
    """`weight` [N, K] in blocks: a block's scale is a 127th of its largest number, in float16.

    Of 4 `bits` it is what makes that number -8. What came out of Q8_0 or Q4_0 blocks of so many
    bits is kept exactly, whatever number is a block's largest.
    UnsupportedModel, with the `name`, where K is no multiple of 32, a number is none, or one is too
    large for a float16 scale.
    """
    num_columns, num_products = weight.shape
    if num_products % BLOCK:
        raise UnsupportedModel(
            f"{name} has rows of {num_products} numbers, which are no blocks of {BLOCK}, as "
            "--weights int8 and int4 keep it: build with --weights model"
        )
    blocks = weight.float().view(-1, BLOCK)
    scales = _scales(blocks, bits)
    if not bool(scales.isfinite().all()):
        raise UnsupportedModel(
            f"{name} holds numbers that are none or above {_divisor(bits) * 65504}: it can't be "
            f"kept as int{bits}; fetch the checkpoint again, or build with --weights model"
        )
    numbers = _numbers(blocks, scales, bits)
    _keep_multiples(blocks, numbers, scales, bits)
    shape = (num_columns, num_products // BLOCK)
    return BlockWeight(numbers.view(num_columns, num_products), scales.view(shape), bits)


def _largest(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1


def _divisor(bits: int) -> int:
    """What a block's largest number becomes, without its sign."""
    return 127 if bits == 8 else 8


def _scales(blocks: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return (blocks.abs().amax(1) / _divisor(bits)).half()
    # All 16 numbers are of use: there is one more below 0 than above.
    least, most = blocks.aminmax(dim=1)
    return (torch.where(-least > most, least, most) / -_divisor(bits)).half()


def _numbers(blocks: Tensor, scales: Tensor, bits: int) -> Tensor:
    # A block of zeros, or of numbers below any scale, has scale 0: they are 0 by 1, too.
    wide = scales.float().masked_fill_(scales == 0, 1)[:, None]
    return (blocks / wide).round_().clamp_(-_divisor(bits), _largest(bits)).char()


def _keep_multiples(blocks: Tensor, numbers: Tensor, scales: Tensor, bits: int) -> None:
    """Give blocks that are whole multiples of another float16 those multiples, in place."""
    some = blocks[:: -(-len(blocks) // _SAMPLE)]
    if not bool(_multiples(some, bits)[1].all()):
        return
    exact = (numbers.float() * scales.float()[:, None] == blocks).all(1)
    odd = (~exact).nonzero()[:, 0]
    own_scales, is_multiple = _multiples(blocks[odd], bits)
    odd, own_scales = odd[is_multiple], own_scales[is_multiple]
    scales[odd] = own_scales
    numbers[odd] = (blocks[odd] / own_scales.float()[:, None]).round_().char()


def _multiples(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """For each block a scale that makes all its numbers whole, of so many bits, and if one does."""
    most_bits = _largest(bits)
    largest = blocks.abs().amax(1)
    scales, is_multiple = torch.zeros_like(largest).half(), torch.zeros_like(largest).bool()
    # A negative scale only where 128 (8) of it is in the block: it has -128 (-8) alone.
    for most in (*range(most_bits, 0, -1), most_bits + 1, -most_bits - 1):
        scale = (largest / most).half()
        wide = scale.float().masked_fill_(scale == 0, 1)[:, None]
        whole = (blocks / wide).round_().clamp_(-most_bits - 1, most_bits)
        fits = ~is_multiple & (whole * wide == blocks).all(1)
        scales[fits], is_multiple[fits] = scale[fits], True
    return scales, is_multiple


def _product(numbers: Tensor, scales: Tensor) -> Tensor:
    # Exact before it is rounded: 8 + 11 bits.
    blocks = numbers.view(*scales.shape, BLOCK).float() * scales.float()[..., None]
    upper_half = (blocks.view(torch.int32) + 0x8000).bitwise_and_(-0x10000)
    return upper_half.view(torch.float32).flatten(-2).bfloat16()

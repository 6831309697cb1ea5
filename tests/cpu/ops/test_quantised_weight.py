"""Weights as Q/DQ nodes have them: rounded to what plain loops say, refused where they can't be."""

import math

import pytest
import torch
from torch import Tensor

from legokv.errors import UnsupportedModel
from legokv.ops.quantised_weight import (
    FP8,
    QuantisedWeight,
    fake_fp8,
    fp8_weight,
    int4_weight,
    stacked_quantised,
)


def random_weight(num_out: int, num_in: int, seed: int = 0) -> Tensor:
    return torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("num_in", "block"), [(384, 128), (192, 64), (96, 32), (48, 16)], ids=lambda size: str(size)
)
def test_int4_rounds_each_number_to_the_nearest_of_its_block_s_largest(
    num_in: int, block: int
) -> None:
    weight = random_weight(3, num_in)
    weight[1, :block] = 0
    made = int4_weight(weight, "w")
    assert made.block == block
    assert made.scales.shape == (3, num_in // block)
    for row in range(3):
        for at in range(0, num_in, block):
            numbers = weight[row, at : at + block].tolist()
            scale = made.scales[row, at // block].item()
            # Zeros are so by any scale, but TensorRT takes none of 0.
            assert scale == (torch.tensor(max(map(abs, numbers)) / 7).bfloat16().item() or 1)
            expected = [round(n / scale) for n in numbers]
            found = made.numbers[row, at : at + block].tolist()
            assert found == [max(-7, min(7, n)) for n in expected]
            dense = made.dense()[row, at : at + block]
            assert torch.equal(dense, (torch.tensor(found) * scale).bfloat16())


def test_fp8_keeps_what_is_a_number_of_its_own_and_is_within_a_sixteenth_of_all_others() -> None:
    numbers = torch.tensor([[448.0, -448, 1, -0.5, 104, 0, 0.0625, 15]])
    assert torch.equal(fp8_weight(numbers * 0.25, "w").dense(), (numbers * 0.25).bfloat16())
    weight = random_weight(40, 64)
    made = fp8_weight(weight, "w")
    assert made.numbers.dtype == FP8
    assert (made.numbers.float().abs().amax(1) == 448).all()
    assert made.scales.shape == (40,)
    # Half a step of 3 bits, and the rounding to bfloat16; below the smallest normal an even step.
    error = (made.dense().float() - weight).abs()
    assert (error <= weight.abs() / 15 + 2.0**-10 * made.scales.float()[:, None]).all()
    zeros = fp8_weight(torch.zeros(2, 16), "w")
    assert zeros.scales.tolist() == [1, 1]
    assert not zeros.dense().any()


def test_an_input_past_the_largest_is_the_largest_and_its_zeros_stay_zeros() -> None:
    x = torch.tensor([1000.0, -1000, 0, 1], dtype=torch.bfloat16)
    near = fake_fp8(x, 0.5)
    assert near.dtype == torch.bfloat16
    assert near.tolist() == [224, -224, 0, 1]


def test_weights_below_each_other_keep_their_scales_and_one_where_all_have_it() -> None:
    by_output = [fp8_weight(random_weight(size, 32, size), "w") for size in (3, 5)]
    quarter, half = (
        [QuantisedWeight(part.numbers, torch.tensor(scale).bfloat16()) for part in by_output]
        for scale in (0.25, 0.5)
    )
    for parts, shape in ((by_output, (8,)), ([quarter[0], half[1]], (8,)), (half, ())):
        together = stacked_quantised(parts)
        assert together.scales.shape == shape
        assert torch.equal(together.dense(), torch.cat([part.dense() for part in parts]))
    blocks = [int4_weight(random_weight(size, 128, size), "w") for size in (3, 5)]
    stacked = stacked_quantised(blocks)
    assert stacked.block == 64
    assert torch.equal(stacked.dense(), torch.cat([part.dense() for part in blocks]))


def test_rows_that_are_no_blocks_and_numbers_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"^layers\.0\.out\.weight has rows of 24 numbers"):
        int4_weight(random_weight(2, 24), "layers.0.out.weight")
    weight = random_weight(2, 32)
    weight[1, 3] = math.inf
    for quantise in (fp8_weight, int4_weight):
        with pytest.raises(UnsupportedModel, match="w holds numbers that are none"):
            quantise(weight, "w")

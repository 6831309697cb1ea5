"""Weights in 8 or 4 bits a number: kept as GGUF's blocks are, multiplied as their dense form is."""

import math

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from legokv.errors import LaunchRefused, UnsupportedModel
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.linear import LinearCalls, NativeWeight
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.ops.block_weight import BlockEmbedding, BlockWeight, block_weight

Q8_0, Q4_0 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
# Columns and products: a panel that is not full, one step, parts of steps, many panels.
SHAPES = [(32, 32), (7, 64), (40, 96), (100, 608), (300, 1536)]
FORMS = [InstructionSet.SOFTWARE_TILES, InstructionSet.AVX512_BF16, InstructionSet.AMX]


@pytest.fixture(scope="module")
def calls() -> LinearCalls:
    return LinearCalls(NativeLibrary(build_native_library(print)))


def random_weight(shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])) * 0.05


def blocks_of(weight: Tensor) -> np.ndarray:
    return quantize(weight.numpy(), Q8_0)


def dense_by_gguf(blocks: np.ndarray) -> Tensor:
    return torch.from_numpy(dequantize(blocks, Q8_0))


def best(calls: LinearCalls) -> InstructionSet:
    return calls.instruction_sets(torch.bfloat16)[-1]


def test_a_weight_in_bytes_is_off_by_half_a_step_at_most_and_by_bfloat16_s_rounding():
    weight = random_weight((64, 256))
    steps = weight.view(64, -1, 32).abs().amax(2) / 127
    allowed = steps.repeat_interleave(32, 1) * 0.51 + weight.abs() * 2**-8
    assert bool(((block_weight(weight, "w").dense().float() - weight).abs() <= allowed).all())


def test_q8_0_blocks_are_kept_byte_by_byte():
    blocks = blocks_of(random_weight((48, 320)))
    kept = block_weight(dense_by_gguf(blocks), "w")
    raw = blocks.reshape(48, 10, 34)
    assert np.array_equal(kept.scales.numpy(), raw[..., :2].copy().view(np.float16)[..., 0])
    assert np.array_equal(kept.numbers.numpy(), raw[..., 2:].view(np.int8).reshape(48, 320))


def test_q8_0_blocks_of_another_s_making_are_kept_number_by_number():
    dice = np.random.default_rng(5)
    raw = np.empty((64, 8, 34), np.uint8)
    scales = dice.uniform(-0.01, 0.01, (64, 8, 1)).astype(np.float16)
    raw[..., :2] = scales.view(np.uint8).reshape(64, 8, 2)
    raw[..., 2:] = dice.integers(-128, 128, (64, 8, 32)).astype(np.int8).view(np.uint8)
    raw[0, 0], raw[63, :, 2:] = 0, 0
    dense = dense_by_gguf(raw.reshape(64, -1))
    kept = block_weight(dense, "w")
    found = kept.numbers.view(64, 8, 32).float() * kept.scales.float()[..., None]
    assert torch.equal(found.view(64, -1), dense)


def test_q4_0_blocks_are_kept_number_by_number():
    blocks = quantize(random_weight((48, 320)).numpy(), Q4_0)
    kept = block_weight(torch.from_numpy(dequantize(blocks, Q4_0)), "w", 4)
    raw = blocks.reshape(48, 10, 18)
    assert np.array_equal(kept.scales.numpy(), raw[..., :2].copy().view(np.float16)[..., 0])
    numbers = np.concatenate([raw[..., 2:] & 15, raw[..., 2:] >> 4], axis=2).astype(np.int8) - 8
    assert np.array_equal(kept.numbers.numpy(), numbers.reshape(48, 320))


def test_q4_0_blocks_of_another_s_making_are_kept_number_by_number():
    dice = np.random.default_rng(6)
    raw = dice.integers(0, 256, (64, 8, 18)).astype(np.uint8)
    scales = dice.uniform(-0.01, 0.01, (64, 8, 1)).astype(np.float16)
    raw[..., :2] = scales.view(np.uint8).reshape(64, 8, 2)
    raw[0, 0, :2], raw[63, :, 2:] = 0, 0x88
    # No number of these is -8, nor of those -7: their largest do not tell the scale.
    raw[1:30, :, 2:] = dice.integers(3, 14, (29, 8, 16)) * 17
    dense = torch.from_numpy(dequantize(raw.reshape(64, -1), Q4_0))
    kept = block_weight(dense, "w", 4)
    found = kept.numbers.view(64, 8, 32).float() * kept.scales.float()[..., None]
    assert torch.equal(found.view(64, -1), dense)


def test_a_weight_in_4_bits_is_off_by_half_a_step_at_most_but_where_16_numbers_end():
    weight = random_weight((64, 256))
    blocks = weight.view(-1, 32)
    steps = blocks.abs().amax(1, keepdim=True) / 8
    off = (block_weight(weight, "w", 4).dense().float().view(-1, 32) - blocks).abs()
    # The number that would be 8 is 7: off by a whole step.
    largest = (blocks.abs() > 7.49 * steps).float()
    allowed = steps * (0.51 + 0.5 * largest) + blocks.abs() * 2**-8
    assert bool((off <= allowed).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_and_numbers_below_any_scale_are_zeros(bits):
    weight = torch.zeros(2, 64)
    weight[1, 3] = 1e-8
    assert not block_weight(weight, "w", bits).dense().any()


@pytest.mark.parametrize("number", [math.nan, math.inf, -1e7])
@pytest.mark.parametrize(("bits", "most"), [(8, 8319008), (4, 524032)])
def test_numbers_that_no_scale_holds_are_refused_by_the_tensor_s_name(number, bits, most):
    weight = random_weight((4, 64))
    weight[2, 5] = most
    assert block_weight(weight, "model.q", bits).dense().isfinite().all()
    weight[2, 5] = number
    match = rf"model\.q holds numbers that are none or above {most}: it can't be kept as int{bits};"
    with pytest.raises(UnsupportedModel, match=match):
        block_weight(weight, "model.q", bits)


def test_rows_that_are_no_whole_blocks_are_refused_with_their_length_and_both_forms():
    """With int4 it is the embedding that is refused first, which is of 8 bits then too."""
    for bits in (8, 4):
        match = (
            r"model\.q has rows of 80 numbers, which are no blocks of 32, as --weights int8 and "
            r"int4 keep it: build with --weights model"
        )
        with pytest.raises(UnsupportedModel, match=match):
            block_weight(torch.zeros(4, 80), "model.q", bits)


def test_an_embedding_looks_up_the_dense_form_s_rows():
    weight = block_weight(random_weight((50, 64)), "w")
    ids = torch.tensor([3, 0, 49, 3])
    assert torch.equal(BlockEmbedding(weight)(ids), weight.dense()[ids])


@pytest.mark.parametrize("rows", [1, 31, 33, 130])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_with_blocks_has_the_bits_of_the_one_with_their_dense_form(
    calls, form, shape, rows, bits
):
    if form not in calls.instruction_sets(torch.bfloat16):
        pytest.skip(f"this processor or compiler has no {form.name}")
    weight, bias = block_weight(random_weight(shape), "w", bits), torch.randn(shape[0])
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows)).bfloat16()
    found, expected = (
        calls.multiply(x, NativeWeight(calls, each, bias), form)
        for each in (weight, weight.dense())
    )
    assert torch.equal(found, expected)


def test_every_byte_is_its_number(calls):
    numbers = torch.arange(-128, 128, dtype=torch.int16).char().view(8, 32).contiguous()
    scales = torch.tensor([1, 2, 0.5, 2**-24, -3, 0.1, 1000, 0]).half()[:, None].contiguous()
    weight = BlockWeight(numbers, scales)
    out = calls.multiply(torch.eye(32).bfloat16(), NativeWeight(calls, weight, None), best(calls))
    assert torch.equal(out, weight.dense().T)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_number_by_every_scale_is_rounded_as_the_dense_form_is(calls, bits):
    scales = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)
    columns = max(2**bits // 32, 1)
    numbers = (torch.arange(32 * columns) % 2**bits - 2 ** (bits - 1)).char()
    weight = BlockWeight(
        numbers.view(columns, 32).repeat(len(scales), 1),
        scales.repeat_interleave(columns)[:, None].contiguous(),
        bits,
    )
    out = calls.multiply(torch.eye(32).bfloat16(), NativeWeight(calls, weight, None), best(calls))
    assert torch.equal(out, weight.dense().T)


@pytest.mark.parametrize("form", FORMS)
def test_every_number_of_4_bits_is_itself_in_each_place_of_a_step(calls, form):
    if form not in calls.instruction_sets(torch.bfloat16):
        pytest.skip(f"this processor or compiler has no {form.name}")
    numbers = (torch.arange(64 * 96).view(64, 96) * 5 % 16 - 8).char()
    scales = torch.tensor([1, 2**-24, -3, 0.1, 60000, 0, 1 / 3, -0.0117]).half()
    weight = BlockWeight(numbers, scales.repeat(24).view(64, 3), 4)
    out = calls.multiply(torch.eye(96).bfloat16(), NativeWeight(calls, weight, None), form)
    assert torch.equal(out, weight.dense().T)


def test_a_number_between_two_of_bfloat16_goes_away_from_zero():
    numbers = torch.tensor([[1, -1, 2, 3, -3, 127] + [0] * 26]).char()
    weight = BlockWeight(numbers, torch.tensor([[1 + 2**-8]]).half())
    up = 1 + 2**-7
    assert weight.dense()[0, :6].tolist() == [up, -up, 2 * up, 3.015625, -3.015625, 127.5]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 20, 40])
@pytest.mark.parametrize("bits", [8, 4])
def test_small_and_large_scales_and_ties_beside_each_other_give_the_dense_form_s_bits(
    calls, bits, rows, form
):
    if form not in calls.instruction_sets(torch.bfloat16):
        pytest.skip(f"this processor or compiler has no {form.name}")
    dice = torch.Generator().manual_seed(bits)
    shape, half = (96, 320), 2 ** (bits - 1)
    numbers = torch.randint(-half, half, shape, generator=dice).char()
    # Scales of few bits have ties; the last panel alone has some too large for float16 products.
    scales = torch.randint(1, 2**6, (96, 10), generator=dice) * 2.0**-14 * (1 + 2**-8)
    scales[:32] *= 2.0 ** torch.randint(-10, 1, (32, 10), generator=dice)
    scales[3], scales[40] = 0, -scales[40]
    limit = 64 / half
    scales[64:] = torch.tensor([limit, limit * (1 - 2**-11), -limit, 1000.0, 2**-24]).repeat(2)
    weight = BlockWeight(numbers, scales.half(), bits)
    x = torch.randn(rows, 320, generator=dice).bfloat16()
    found, expected = (
        calls.multiply(x, NativeWeight(calls, each, None), form)
        for each in (weight, weight.dense())
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("number", [2.0**25, 2.0**26, 3e38, 1e-39, 2.0**-126, math.inf, math.nan])
def test_a_row_with_a_number_of_any_size_has_its_bits_in_any_company(calls, number):
    layer = NativeWeight(calls, block_weight(random_weight((64, 320)), "w"), None)
    x = torch.randn(40, 320, generator=torch.Generator().manual_seed(3)).bfloat16()
    x[2] = 0
    x[2, 7] = number
    whole = calls.multiply(x, layer, best(calls))
    for rows in (x[2:3], x[1:21]):
        found = calls.multiply(rows.clone(), layer, best(calls))
        first = 2 if len(rows) == 1 else 1
        assert torch.equal(
            found.view(torch.int16), whole[first : first + len(rows)].view(torch.int16)
        )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_any_number_of_rows_gives_a_row_the_same_bits_with_blocks(
    calls, num_threads, bits, torch_threads
):
    layer = NativeWeight(calls, block_weight(random_weight((200, 576)), "w", bits), None)
    x = torch.randn(130, 576, generator=torch.Generator().manual_seed(9)).bfloat16()
    whole = calls.multiply(x, layer, best(calls))
    torch_threads(num_threads)
    for rows in range(1, 131):
        assert torch.equal(calls.multiply(x[-rows:].clone(), layer, best(calls)), whole[-rows:])


def test_bytes_are_for_bfloat16_rows_and_whole_blocks_alone(calls):
    weight = block_weight(random_weight((32, 64)), "w")
    layer = NativeWeight(calls, weight, None)
    with pytest.raises(LaunchRefused, match=r"\[2, 64\] of .*bfloat16"):
        calls.multiply(torch.zeros(2, 64), layer, best(calls))
    with pytest.raises(LaunchRefused, match=r"\[32, 48\] in 8 bits: sums of a multiple of 32"):
        calls.pack_blocks(BlockWeight(weight.numbers[:, :48], weight.scales[:, :1]))

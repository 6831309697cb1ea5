"""Linear layers and gates by the library: the definition's results, a row's bits in any company."""

import errno
import logging
import mmap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from legokv.checkpoint import load_weights, read_model_config
from legokv.checkpoint.weights import load_kept_weights
from legokv.errors import LaunchRefused
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.linear import (
    LinearCalls,
    NativeGate,
    NativeLinear,
    NativeNorm,
    NativeTail,
    NativeWeight,
    PackedMemory,
)
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.model.decoder import Gate, RMSNorm, decoder_from_weights
from legokv.ops.block_weight import BlockWeight, block_weight
from legokv.runners.packed_weights import PackedLinear, pack_decoder, parted_weights

# Rows, columns, products: a lone row, tiles that are not full, columns that end within a panel,
# sums of several parts, several panels at once.
SHAPES = [(1, 32, 32), (3, 7, 64), (17, 40, 96), (33, 100, 576), (150, 300, 608), (300, 96, 1536)]
# Half a unit in the last of 8 or 24 bits, and what summing up in float32 adds to it.
TOLERANCE = {torch.bfloat16: (1e-5, 2**-8), torch.float32: (1e-5, 2**-24)}
FORMS = [
    (InstructionSet.PORTABLE, torch.float32),
    (InstructionSet.AVX2, torch.float32),
    (InstructionSet.AVX512, torch.float32),
    (InstructionSet.SOFTWARE_TILES, torch.bfloat16),
    (InstructionSet.AVX512_BF16, torch.bfloat16),
    (InstructionSet.AMX, torch.bfloat16),
]
IN_BYTES = [(each, torch.int8) for each, dtype in FORMS if dtype == torch.bfloat16]
GATES = [
    (each, dtype)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for each in InstructionSet
    if each and (not each.bfloat16_only or dtype == torch.bfloat16)
]


@pytest.fixture(scope="module")
def library() -> NativeLibrary:
    return NativeLibrary(build_native_library(print))


@pytest.fixture(scope="module")
def calls(library: NativeLibrary) -> LinearCalls:
    return LinearCalls(library)


def case(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, num_columns, num_products = shape
    dice = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, num_products, generator=dice)
    weight = torch.randn(num_columns, num_products, generator=dice) * num_products**-0.5
    bias = torch.randn(num_columns, generator=dice)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def multiplies_pairs(calls: LinearCalls) -> bool:
    """Whether bfloat16 goes by the library: tiles that it was compiled without go by oneDNN."""
    best = calls.instruction_sets(torch.bfloat16)[-1]
    by_lanes = best == InstructionSet.AVX512_BF16 and not torch.cpu._is_amx_tile_supported()
    return by_lanes or best == InstructionSet.AMX


def skip_if_missing(
    calls: LinearCalls, instruction_set: InstructionSet, dtype: torch.dtype
) -> None:
    if instruction_set not in calls.instruction_sets(dtype):
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("instruction_set", "dtype"), FORMS)
def test_a_native_layer_gives_the_layer_s_result(calls, instruction_set, dtype, shape, with_bias):
    skip_if_missing(calls, instruction_set, dtype)
    x, weight, bias = case(shape, dtype)
    exact = x.double() @ weight.double().T
    exact = exact + bias.double() if with_bias else exact
    layer = NativeWeight(calls, weight, bias if with_bias else None)
    out = calls.multiply(x, layer, instruction_set)
    atol, rtol = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), exact, atol=atol, rtol=rtol)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_processor_s_tiles_round_as_the_software_s_do(calls, shape):
    skip_if_missing(calls, InstructionSet.AMX, torch.bfloat16)
    x, weight, bias = case(shape)
    layer = NativeWeight(calls, weight, bias)
    found, expected = (
        calls.multiply(x, layer, each)
        for each in (InstructionSet.AMX, InstructionSet.SOFTWARE_TILES)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", [(700, 96, 1536), (700, 200, 576)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_number_of_rows_gives_a_row_the_same_bits(
    calls, dtype, shape, num_threads, torch_threads
):
    (x, weight, _), best = case(shape, dtype), calls.instruction_sets(dtype)[-1]
    layer = NativeWeight(calls, weight, None)
    whole = calls.multiply(x, layer, best)
    torch_threads(num_threads)
    dice = torch.Generator().manual_seed(3)
    for rows in [1, 2, 32, *torch.randint(1, 700, (10,), generator=dice).tolist()]:
        first = int(torch.randint(0, 700 - rows, (1,), generator=dice))
        part = calls.multiply(x[first : first + rows].clone(), layer, best)
        assert torch.equal(part, whole[first : first + rows]), f"rows {first} to {first + rows}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_rows_give_no_rows(calls, dtype):
    x, weight, _ = case((1, 32, 64), dtype)
    layer = NativeWeight(calls, weight, None)
    assert calls.multiply(x[:0], layer, calls.instruction_sets(dtype)[0]).shape == (0, 32)
    assert calls.gate(x[:0]).shape == (0, 32)


def test_what_does_not_fit_is_refused(calls):
    x, weight, _ = case((2, 32, 80))
    assert not calls.takes(weight)
    assert not calls.takes(weight[:, :64].half())
    with pytest.raises(LaunchRefused, match=r"\[32, 80\]: sums of a multiple of 32 products"):
        calls.pack(weight)
    with pytest.raises(LaunchRefused, match="dtype 1: only float32 and bfloat16"):
        calls.pack(weight[:, :64].half())
    fitting = NativeWeight(calls, weight[:, :64], None)
    with pytest.raises(LaunchRefused, match=r"\[2, 64\] of .*bfloat16, it is \[2, 80\]"):
        calls.multiply(x, fitting, InstructionSet.SOFTWARE_TILES)
    with pytest.raises(LaunchRefused, match="float32"):
        calls.multiply(x[:, :64].float(), fitting, InstructionSet.SOFTWARE_TILES)
    with pytest.raises(LaunchRefused, match="instruction set 3"):
        calls.multiply(x[:, :64], fitting, InstructionSet.AVX2)
    with pytest.raises(LaunchRefused, match=r"residual must be \[2, 32\] .*, it is \[1, 32\]"):
        calls.multiply(x[:, :64], fitting, InstructionSet.SOFTWARE_TILES, x[:1, :32])
    with pytest.raises(LaunchRefused, match=r"weight must be \[80\] .*, it is \[64\]"):
        calls.norm(x, weight[0, :64], 1e-5)
    with pytest.raises(LaunchRefused, match=r"weight must be \[64\] .*, it is \[80\]"):
        fitting.put_norm_before(NativeNorm(calls, weight[0], 1e-5))


@pytest.mark.parametrize("num_columns", [1, 15, 64, 100])
@pytest.mark.parametrize(("instruction_set", "dtype"), GATES)
def test_a_native_gate_gives_the_definition_s_result(
    calls, library, instruction_set, dtype, num_columns
):
    if not library.functions.legokv_cpu_has(instruction_set):
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    x = torch.randn(9, 2 * num_columns, generator=torch.Generator().manual_seed(2)) * 3
    x[0, 0], x[1, 0], x[2, 0] = 200.0, -200.0, torch.nan
    found, expected = calls.gate(x.to(dtype), instruction_set), Gate()(x.to(dtype))
    # A unit in the last place, twice rounded; silu(-200) is all but zero.
    rtol = {torch.float32: 1e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=rtol, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_number_of_rows_gives_a_gate_s_row_the_same_bits(calls, dtype):
    x = torch.randn(300, 2 * 173, generator=torch.Generator().manual_seed(4)).to(dtype)
    whole = calls.gate(x)
    for first, end in ((0, 1), (7, 9), (100, 299)):
        assert torch.equal(calls.gate(x[first:end].clone()), whole[first:end])


@pytest.mark.parametrize("num_columns", [1, 15, 64, 100, 1536])
@pytest.mark.parametrize(("instruction_set", "dtype"), GATES)
def test_a_native_norm_gives_the_definition_s_result(
    calls, library, instruction_set, dtype, num_columns
):
    if not library.functions.legokv_cpu_has(instruction_set):
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    norm, x = norm_case((3, 3, num_columns), dtype)
    x[0, 0, 0] = torch.nan
    found = calls.norm(x, norm.weight, norm.eps, instruction_set)
    # A unit in the last place, twice rounded.
    rtol = {torch.float32: 1e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]
    torch.testing.assert_close(found, norm(x), atol=1e-6, rtol=rtol, equal_nan=True)
    assert found[0, 0].isnan().all()
    assert not found[0, 1:].isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_number_of_rows_gives_a_norm_s_row_the_same_bits(calls, dtype):
    norm, x = norm_case((300, 173), dtype)
    whole = calls.norm(x, norm.weight, norm.eps)
    for first, end in ((0, 1), (7, 9), (100, 299)):
        part = calls.norm(x[first:end].clone(), norm.weight, norm.eps)
        assert torch.equal(part, whole[first:end])


def norm_case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[RMSNorm, Tensor]:
    dice = torch.Generator().manual_seed(5)
    norm = RMSNorm(shape[-1], 1e-5)
    norm.weight = nn.Parameter(torch.randn(shape[-1:], generator=dice).to(dtype), False)
    return norm, (3 * torch.randn(shape, generator=dice)).to(dtype)


@pytest.mark.parametrize("num_rows", [1, 150])
@pytest.mark.parametrize(("instruction_set", "weight_dtype"), [*FORMS, *IN_BYTES])
def test_what_stands_before_and_behind_a_product_in_one_call_has_the_bits_of_several(
    calls, instruction_set, weight_dtype, num_rows, torch_threads
):
    is_int8 = weight_dtype == torch.int8
    dtype = torch.bfloat16 if is_int8 else weight_dtype
    skip_if_missing(calls, instruction_set, dtype)
    torch_threads(1 if num_rows == 1 else 2)
    norm, x = norm_case((num_rows, 576), dtype)
    gates = norm_case((num_rows, 2 * 576), dtype)[1]
    _, weight, bias = case((num_rows, 100, 576), dtype)
    residual = norm_case((num_rows, 100), dtype)[1]
    of = block_weight(weight, "a weight") if is_int8 else weight
    plain, normed, gated = (NativeWeight(calls, of, bias) for _ in range(3))
    normed.put_norm_before(NativeNorm(calls, norm.weight, norm.eps))
    gated.put_gate_before()
    rows = calls.norm(x, norm.weight, norm.eps, instruction_set)
    expected = residual + calls.multiply(rows, plain, instruction_set)
    assert torch.equal(calls.multiply(x, normed, instruction_set, residual), expected)
    rows = calls.gate(gates, instruction_set)
    expected = residual + calls.multiply(rows, plain, instruction_set)
    assert torch.equal(calls.multiply(gates, gated, instruction_set, residual), expected)


def tail_case(
    calls: LinearCalls, instruction_set: InstructionSet, weight_dtype: torch.dtype
) -> list[NativeLinear]:
    """A layer's out, gate_up and down: 160 numbers of attention, a hidden size of 96."""
    is_int8 = weight_dtype == torch.int8
    dtype = torch.bfloat16 if is_int8 else weight_dtype
    linears = []
    for shape in ((2, 96, 160), (3, 2 * 224, 96), (4, 96, 224)):
        _, weight, bias = case(shape, dtype)
        of = block_weight(weight, "a weight") if is_int8 else weight
        linears.append(NativeLinear(calls, of, bias))
        linears[-1].instruction_set = instruction_set
    norm = norm_case((1, 96), dtype)[0]
    linears[1].weight.put_norm_before(NativeNorm(calls, norm.weight, norm.eps))
    linears[2].weight.put_gate_before()
    return linears


@pytest.mark.parametrize("num_rows", [0, 1, 150])
@pytest.mark.parametrize(("instruction_set", "weight_dtype"), [*FORMS, *IN_BYTES])
def test_all_behind_a_layer_s_attention_in_one_call_has_the_bits_of_its_products_one_by_one(
    calls, instruction_set, weight_dtype, num_rows, torch_threads
):
    dtype = torch.bfloat16 if weight_dtype == torch.int8 else weight_dtype
    skip_if_missing(calls, instruction_set, dtype)
    torch_threads(1 if num_rows == 1 else 2)
    out, gate_up, down = tail_case(calls, instruction_set, weight_dtype)
    attended, x = (norm_case((num_rows, size), dtype)[1] for size in (160, 96))
    after = out(attended, x)
    expected = down(gate_up(after), after)
    assert torch.equal(NativeTail(calls, out, gate_up, down)(attended, x), expected)


def test_rows_that_are_not_a_layer_s_are_refused_with_both_shapes(calls):
    tail = NativeTail(calls, *tail_case(calls, InstructionSet.AVX2, torch.float32))
    attended, x = torch.zeros(3, 160), torch.zeros(3, 96)
    with pytest.raises(LaunchRefused, match=r"attention gives must be \[3, 160\].*is \[2, 160\]"):
        tail(attended[:2], x)
    with pytest.raises(LaunchRefused, match=r"x must be \[3, 96\].*is \[3, 95\]"):
        tail(attended, x[:, 1:])
    with pytest.raises(LaunchRefused, match=r"float32, it is .* of torch.bfloat16"):
        tail(attended.bfloat16(), x)
    tail.arguments[1].num_products = 95
    with pytest.raises(LaunchRefused, match=r"multiply: 3 rows \[448, 95\]"):
        tail(attended, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen3"])
def test_a_decoder_is_packed_whole(library, calls, name, dtype, tiny_checkpoint):
    folder = tiny_checkpoint(name)
    config = read_model_config(folder)
    decoder = decoder_from_weights(config, load_weights(folder, config, dtype))
    pack_decoder(decoder, library)
    layers = [each for each in decoder.modules() if isinstance(each, NativeLinear | PackedLinear)]
    assert len(layers) == 4 * config.num_layers + 1
    has_best = dtype == torch.float32 or multiplies_pairs(calls)
    for layer in layers:
        assert isinstance(layer, NativeLinear if has_best else PackedLinear)
    assert not [each for each in decoder.modules() if isinstance(each, Gate | RMSNorm)]
    # In one call with the product behind them, where the library multiplies.
    num_apart = 0 if has_best else config.num_layers
    num_head_norms = 2 * config.num_layers * config.qk_norm
    counts = Counter(type(each) for each in decoder.modules())
    assert counts[NativeGate] == num_apart
    assert counts[NativeNorm] == 2 * num_apart + num_head_norms + 1
    assert counts[NativeTail] == config.num_layers - num_apart


def test_tiles_that_the_library_was_compiled_without_are_left_to_onednn(
    library: NativeLibrary,
    calls: LinearCalls,
    tiny_checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if calls.instruction_sets(torch.bfloat16)[-1] != InstructionSet.AVX512_BF16:
        pytest.skip("this library has AMX, or no products of bfloat16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    folder = tiny_checkpoint("llama")
    config = read_model_config(folder)
    weights = load_kept_weights(folder, config, torch.bfloat16, "int8")
    ready, in_blocks = parted_weights(weights, library)
    assert not in_blocks
    decoder = decoder_from_weights(config, ready)
    pack_decoder(decoder, library)
    assert not [each for each in decoder.modules() if isinstance(each, NativeLinear)]
    assert isinstance(decoder.head, PackedLinear)


def test_weights_in_blocks_stay_so_where_the_processor_multiplies_pairs_of_bfloat16(
    library: NativeLibrary, calls: LinearCalls, tiny_checkpoint: Callable[[str], Path]
) -> None:
    if not multiplies_pairs(calls):
        pytest.skip("this processor or compiler has neither AMX nor AVX-512 with bf16")
    folder = tiny_checkpoint("llama")
    config = read_model_config(folder)
    weights = load_kept_weights(folder, config, torch.bfloat16, "int8")
    names = {name for name, each in weights.items() if isinstance(each, BlockWeight)}
    ready, in_blocks = parted_weights(weights, library)
    assert set(in_blocks) == names
    assert all(ready[name].is_meta for name in names)
    decoder = decoder_from_weights(config, ready)
    pack_decoder(decoder, library, in_blocks)
    layers = [each for each in decoder.modules() if isinstance(each, NativeLinear)]
    assert len(layers) == 4 * config.num_layers + 1
    assert all(each.weight.packed.dtype == torch.uint8 for each in layers)


def test_where_no_memory_can_be_mapped_weights_lie_in_ordinary_memory_and_the_log_says_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    memory = PackedMemory()
    with caplog.at_level(logging.WARNING, "legokv"):
        found = [memory.tensor(70, torch.bfloat16).fill_(number) for number in range(2)]
    assert [tensor.tolist() for tensor in found] == [[0.0] * 70, [1.0] * 70]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found)
    (line,) = caplog.messages
    assert "67108864 bytes for packed weights can't be mapped ([Errno 12]" in line


def test_a_python_that_knows_no_huge_pages_packs_weights_into_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert PackedMemory().tensor(70, torch.float32).fill_(2).sum() == 140

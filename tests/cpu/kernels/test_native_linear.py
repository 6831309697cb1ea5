"""Linear layers by tiles: the definition's results, and each row's bits whatever is beside it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from legokv.checkpoint import load_weights, read_model_config
from legokv.errors import LaunchRefused
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.linear import LinearCalls, TiledLinear, TiledWeight, Tiles
from legokv.model.decoder import decoder_from_weights
from legokv.runners.packed_weights import PackedLinear, pack_decoder

# Rows, columns, products: a lone row, tiles that are not full, columns that end within a panel,
# sums of several parts, several panels at once.
SHAPES = [(1, 32, 32), (3, 7, 64), (17, 40, 96), (33, 100, 576), (150, 300, 608), (300, 96, 1536)]


@pytest.fixture(scope="module")
def library() -> Path:
    return build_native_library(print)


@pytest.fixture(scope="module")
def calls(library: Path) -> LinearCalls:
    return LinearCalls(library)


def case(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, num_columns, num_products = shape
    dice = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, num_products, generator=dice).bfloat16()
    weight = (
        torch.randn(num_columns, num_products, generator=dice) * num_products**-0.5
    ).bfloat16()
    return x, weight, torch.randn(num_columns, generator=dice).bfloat16()


def best_tiles(calls: LinearCalls) -> Tiles:
    return Tiles.AMX if calls.has(Tiles.AMX) else Tiles.SOFTWARE


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tiled_layer_gives_the_layer_s_result(calls, shape, with_bias):
    x, weight, bias = case(shape)
    exact = x.double() @ weight.double().T
    exact = exact + bias.double() if with_bias else exact
    layer = TiledWeight(calls, weight, bias if with_bias else None)
    out = calls.multiply(x, layer, best_tiles(calls))
    # Half a unit in the last of 8 bits, and what summing up in float32 adds to it.
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=2**-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_processor_s_tiles_round_as_the_software_s_do(calls, shape):
    if not calls.has(Tiles.AMX):
        pytest.skip("this processor or compiler has no AMX")
    x, weight, bias = case(shape)
    layer = TiledWeight(calls, weight, bias)
    assert torch.equal(
        calls.multiply(x, layer, Tiles.AMX), calls.multiply(x, layer, Tiles.SOFTWARE)
    )


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", [(700, 96, 1536), (700, 200, 576)])
def test_any_number_of_rows_gives_a_row_the_same_bits(calls, shape, num_threads, torch_threads):
    tiles, (x, weight, _) = best_tiles(calls), case(shape)
    layer = TiledWeight(calls, weight, None)
    whole = calls.multiply(x, layer, tiles)
    torch_threads(num_threads)
    dice = torch.Generator().manual_seed(3)
    for rows in [1, 2, 32, *torch.randint(1, 700, (10,), generator=dice).tolist()]:
        first = int(torch.randint(0, 700 - rows, (1,), generator=dice))
        part = calls.multiply(x[first : first + rows].clone(), layer, tiles)
        assert torch.equal(part, whole[first : first + rows]), f"rows {first} to {first + rows}"


def test_no_rows_give_no_rows(calls):
    x, weight, _ = case((1, 32, 64))
    layer = TiledWeight(calls, weight, None)
    assert calls.multiply(x[:0], layer, Tiles.SOFTWARE).shape == (0, 32)


def test_what_does_not_fit_is_refused(calls):
    x, weight, _ = case((2, 32, 80))
    assert not calls.takes(weight)
    with pytest.raises(LaunchRefused, match=r"\[32, 80\]: sums of a multiple of 32 products"):
        calls.pack(weight)
    fitting = TiledWeight(calls, weight[:, :64], None)
    with pytest.raises(LaunchRefused, match=r"\[rows, 64\] of bfloat16, it is \[2, 80\]"):
        calls.multiply(x, fitting, Tiles.SOFTWARE)
    with pytest.raises(LaunchRefused, match="float32"):
        calls.multiply(x[:, :64].float(), fitting, Tiles.SOFTWARE)
    with pytest.raises(LaunchRefused, match="tiles 2"):
        calls.multiply(x[:, :64], fitting, 2)


@pytest.mark.parametrize("name", ["llama", "llama-untied"])
def test_a_decoder_takes_the_tiles_where_there_are_some(library, name, tiny_checkpoint):
    folder = tiny_checkpoint(name)
    config = read_model_config(folder)
    decoder = decoder_from_weights(config, load_weights(folder, config, torch.bfloat16))
    pack_decoder(decoder, library)
    layers = [layer for layer in decoder.modules() if isinstance(layer, TiledLinear | PackedLinear)]
    assert len(layers) == 4 * config.num_layers + 1
    has_amx = LinearCalls(library).has(Tiles.AMX)
    for layer in layers:
        assert isinstance(layer, TiledLinear if has_amx else PackedLinear)

"""Packed bfloat16 layers: the same numbers as the layers they stand for."""

import numpy as np
import pytest
import torch
from torch import nn

from legokv.checkpoint import load_weights, read_model_config
from legokv.model.decoder import decoder_from_weights
from legokv.runners.packed_weights import PackedLinear, pack_decoder, sums_of_nothing


@pytest.mark.parametrize("rows", [1, 3, 64, 300])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_layer_gives_the_layer_s_result(rows, bias):
    torch.manual_seed(rows)
    linear = nn.Linear(80, 48, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(rows, 80).bfloat16()
    exact = nn.functional.linear(x.double(), linear.weight.double())
    exact = exact + linear.bias.double() if bias else exact
    # Half a unit in the last of 8 bits, for results below 4.
    torch.testing.assert_close(
        PackedLinear(linear.weight, linear.bias)(x).double(), exact, atol=1e-2, rtol=2**-8
    )


@pytest.mark.parametrize("width", [576, 1536])
@torch.inference_mode()
def test_a_row_s_result_has_the_same_bits_alone_and_among_others(width):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(512, width, generator=generator).bfloat16() * 0.05
    x = torch.randn(240, width, generator=generator).bfloat16()
    layer = PackedLinear(weight)
    whole = layer(x)
    for rows in (1, 2, 3, 8, 80):
        parts = [layer(part.contiguous()) for part in x.split(rows)]
        assert torch.equal(torch.cat(parts), whole), f"{rows} rows of 240"


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", [(576, 1536), (960, 576)])
@torch.inference_mode()
def test_any_number_of_rows_gives_a_row_the_same_bits(shape, num_threads, torch_threads):
    torch_threads(num_threads)
    generator = torch.Generator().manual_seed(2)
    layer = PackedLinear(torch.randn(shape, generator=generator).bfloat16() * 0.05)
    x = torch.randn(700, shape[1], generator=generator).bfloat16()
    whole = layer(x)
    for rows in torch.randint(1, 700, (25,), generator=generator).tolist():
        first = int(torch.randint(0, 700 - rows, (1,), generator=generator))
        part = layer(x[first : first + rows].clone())
        assert torch.equal(part, whole[first : first + rows]), f"rows {first} to {first + rows}"


def test_sums_that_are_cut_elsewhere_are_told_apart():
    x, weight = (each.float().numpy() for each in sums_of_nothing((64, 576)))
    products = x[:, None] * weight
    assert np.all(products.astype(float).sum(-1) == 0)
    whole = products.cumsum(-1)[..., -1]
    halves = products.reshape(16, 64, 2, 288).cumsum(-1)[..., -1]
    assert np.mean(whole != halves.sum(-1)) > 0.5


# With rows that are multiplied as they are, with zeros behind them, and in two parts.
@pytest.mark.parametrize("num_rows", [1, 16, 17, 513])
def test_a_result_is_added_to_rows_that_stay_as_they_were(num_rows):
    x, residual = torch.randn(num_rows, 64).bfloat16(), torch.randn(num_rows, 96).bfloat16()
    layer = PackedLinear(torch.randn(96, 64).bfloat16())
    before = x.clone(), residual.clone()
    assert torch.equal(layer(x, residual), residual + layer(x))
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


@pytest.mark.parametrize("name", ["llama", "llama-untied"])
def test_a_bfloat16_decoder_is_packed_whole_and_answers_as_before(name, tiny_checkpoint):
    folder = tiny_checkpoint(name)
    config = read_model_config(folder)
    decoder = decoder_from_weights(config, load_weights(folder, config, torch.bfloat16))
    ids, pools = torch.arange(3, 40), [torch.empty(0)] * config.num_layers
    expected, _ = decoder(ids, torch.tensor([36]), pools, lambda layer, q, k, v, pool: (q, pool))
    pack_decoder(decoder)
    assert not [layer for layer in decoder.modules() if isinstance(layer, nn.Linear)]
    assert isinstance(decoder.head, PackedLinear)
    packed, _ = decoder(ids, torch.tensor([36]), pools, lambda layer, q, k, v, pool: (q, pool))
    # Products summed in another order, rounded to 8 bits at every layer; the logits are of size 10.
    torch.testing.assert_close(packed, expected, atol=0.15, rtol=0.02)


def test_a_float32_decoder_without_the_library_stays_as_it_is(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    config = read_model_config(folder)
    decoder = decoder_from_weights(config, load_weights(folder, config, torch.float32))
    pack_decoder(decoder)
    assert decoder.head is None
    assert not [layer for layer in decoder.modules() if isinstance(layer, PackedLinear)]

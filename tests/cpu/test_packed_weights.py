"""Packed bfloat16 layers: the same numbers as the layers they stand for."""

import pytest
import torch
from torch import nn

from legokv.runners.packed_weights import PackedLinear, pack_linear_layers


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
    torch.testing.assert_close(PackedLinear(linear)(x).double(), exact, atol=1e-2, rtol=2**-8)


def test_only_bfloat16_layers_are_packed():
    module = nn.Sequential(
        nn.Linear(16, 16, dtype=torch.bfloat16),
        nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16, dtype=torch.bfloat16)),
    )
    pack_linear_layers(module)
    kinds = [type(m).__name__ for m in module.modules() if not isinstance(m, nn.Sequential)]
    assert kinds == ["PackedLinear", "Linear", "PackedLinear"]

"""bfloat16 weights kept as oneDNN's kernels read them, instead of repacked by every step."""

import torch
from torch import Tensor, nn

# Rows that the layout is chosen for; others run too.
_ROWS = 64


class PackedLinear(nn.Module):
    """nn.Linear's result from a weight packed once, by the op that torch's own compiler uses."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out


def pack_linear_layers(module: nn.Module) -> None:
    """Replace each bfloat16 nn.Linear below `module` by a PackedLinear.

    Other types stay: float32 goes to another library, which does not gain by it. So does all where
    torch has no oneDNN, or one without bfloat16 for this processor.
    """
    if not (torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and child.weight.dtype == torch.bfloat16:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linear_layers(child)

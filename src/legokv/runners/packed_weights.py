"""bfloat16 weights kept as oneDNN's kernels read them, instead of repacked by every step."""

import torch
from torch import Tensor, nn

from legokv.model.decoder import Decoder

# Rows that the layout is chosen for; others run too.
_ROWS = 64
# Sums of more products than this oneDNN 3 cuts for a lone row, and for no other number of rows.
_UNCUT_PRODUCTS = 1024


class PackedLinear(nn.Module):
    """nn.Linear's result from a weight packed once, by the op that torch's own compiler uses.

    A row's result has the same bits however many rows are computed with it: what else is in a step
    moves no sequence's logits.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        # A lone row is computed twice rather than summed in another order than among others.
        alone = len(x) == 1 and x.shape[-1] > _UNCUT_PRODUCTS
        rows = x.repeat(2, 1) if alone else x
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, "none", [], ""
        )
        return out[:1] if alone else out


def pack_decoder(decoder: Decoder) -> None:
    """Replace the decoder's bfloat16 layers by packed ones, the head too.

    A head tied to the embedding takes its size once more, since rows of the embedding are still
    looked up. Other types stay: float32 goes to another library, which does not gain by it. So does
    all where torch has no oneDNN, or one without bfloat16 for this processor.
    """
    if not (torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return
    _pack_linear_layers(decoder)
    if decoder.head is None and decoder.embed.weight.dtype == torch.bfloat16:
        decoder.head = PackedLinear(decoder.embed.weight)


def _pack_linear_layers(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and child.weight.dtype == torch.bfloat16:
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            _pack_linear_layers(child)

"""bfloat16 weights kept as oneDNN's kernels read them, instead of repacked by every step."""

import torch
from torch import Tensor, nn

from legokv.model.decoder import Decoder
from legokv.runners.row_counts import LAYOUT_ROWS, row_counts


class PackedLinear(nn.Module):
    """nn.Linear's result from a weight packed once, by the op that torch's own compiler uses.

    A row's result has the same bits however many rows are computed with it: what else is in a step
    moves no sequence's logits. So only some numbers of rows are ever given to oneDNN.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), LAYOUT_ROWS)
        self._bias = bias
        self._shape = tuple(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        counts = row_counts(self._shape, self._bias is not None, torch.get_num_threads())
        if len(x) <= counts.largest:
            return self._multiply(x, counts.at_least[len(x)])
        parts = torch.split(x, counts.largest)
        return torch.cat([self._multiply(part, counts.at_least[len(part)]) for part in parts])

    def _multiply(self, x: Tensor, num_rows: int) -> Tensor:
        """The product with zeros behind `x` to so many rows, without theirs."""
        rows = x if len(x) == num_rows else nn.functional.pad(x, (0, 0, 0, num_rows - len(x)))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, "none", [], ""
        )
        return out[: len(x)]


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

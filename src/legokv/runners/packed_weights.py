"""bfloat16 weights kept as the kernels read them, instead of repacked by every step.

A row has the same bits in any company. Where the processor multiplies pairs of bfloat16 (AMX, or
AVX-512 with bf16), our own kernels sum a result's products in one order. Elsewhere oneDNN
multiplies: it cuts that sum by the number of rows, the processor and the number of threads, and a
sum cut elsewhere is rounded elsewhere. So each number of rows is tried once a shape, and a step's
rows are padded or parted to numbers that agree.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor, nn

from legokv.checkpoint.weights import Weight, dense_weight
from legokv.kernels.linear import LinearCalls, NativeGate, NativeLinear, NativeNorm, NativeTail
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.model.decoder import Decoder, Layer, RMSNorm
from legokv.ops.block_weight import BlockEmbedding, BlockWeight

log = logging.getLogger(__name__)

# The layout that oneDNN chooses for a lone row: its kernels with AMX cut no sum that fits a core's
# cache, and up to some number of rows. For that of 8 rows and more they cut by the first cache.
LAYOUT_ROWS = 1
# Rows of a tile of AMX: fewer cost what so many do.
_TILE_ROWS = 16
_TRIED = (1, 2, 4, 8, *range(16, 256, 16), *range(256, 513, 64))
# Of a step's head or of another wide layer fewer rows are tried, as this takes time.
_MOST_RESULTS = 2**22


@dataclass(frozen=True)
class RowCounts:
    """Numbers of rows that give each row the same bits: `at_least[n]` is the first from n on."""

    at_least: tuple[int, ...]

    @property
    def largest(self) -> int:
        return len(self.at_least) - 1


@cache
def row_counts(shape: tuple[int, int], has_bias: bool, num_threads: int) -> RowCounts:
    """The numbers found for a weight of `shape` [N, K]; torch must compute on `num_threads` now."""
    x, weight = sums_of_nothing(shape)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS)
    bias = torch.zeros(shape[0], dtype=x.dtype) if has_bias else None

    def multiplied(rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        return out

    expected = multiplied(x)

    def agrees(num_rows: int) -> bool:
        copies = -(-num_rows // _TILE_ROWS)
        parts = torch.split(x.repeat(copies, 1), num_rows)
        return torch.equal(torch.cat([*map(multiplied, parts)]), expected.repeat(copies, 1))

    most_rows = max(_TILE_ROWS, _MOST_RESULTS // shape[0])
    return _counts_of(n for n in _TRIED if n <= most_rows and agrees(n))


def _counts_of(agreeing: Iterable[int]) -> RowCounts:
    at_least = [0]
    for num_rows in agreeing:
        at_least += [num_rows] * (num_rows - len(at_least) + 1)
    return RowCounts(tuple(at_least))


def sums_of_nothing(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows x and a weight whose products cancel: what is left tells how they were rounded.

    A twin of each product, with the other sign, is somewhere else in its sum.
    """
    num_columns, num_products = shape
    dice = torch.Generator().manual_seed(0)
    half, odd = divmod(num_products, 2)
    order = torch.randperm(num_products, generator=dice)
    nothing = torch.zeros(_TILE_ROWS, odd)
    x, column = (torch.randn(_TILE_ROWS, half, generator=dice) for _ in range(2))
    rows = torch.cat([x, x, nothing], dim=1)[:, order]
    columns = torch.cat([column, -column, nothing], dim=1)[:, order]
    weight = columns.repeat(-(-num_columns // _TILE_ROWS), 1)[:num_columns]
    return rows.bfloat16(), weight.bfloat16()


class PackedLinear(nn.Module):
    """The decoder's Linear from a weight packed once, by oneDNN through torch's own compiler's op.

    A row's result has the same bits however many rows are computed with it: what else is in a step
    moves no sequence's logits. So only some numbers of rows are ever given to oneDNN.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), LAYOUT_ROWS)
        self._bias = bias
        self._shape = (weight.shape[0], weight.shape[1])
        # Now, since it takes a moment: no request waits for it.
        row_counts(self._shape, bias is not None, torch.get_num_threads())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        result = self._result(x)
        return result if residual is None else result.add_(residual)

    def _result(self, x: Tensor) -> Tensor:
        counts = row_counts(self._shape, self._bias is not None, torch.get_num_threads())
        # Not len(), which takes three times as long: a step asks each of its products.
        num_rows = x.shape[0]
        if num_rows <= counts.largest:
            return self._multiply(x, counts.at_least[num_rows])
        parts = torch.split(x, counts.largest)
        return torch.cat([self._multiply(part, counts.at_least[part.shape[0]]) for part in parts])

    def _multiply(self, x: Tensor, num_rows: int) -> Tensor:
        """The product with zeros behind `x` to so many rows, without theirs."""
        num_zeros = num_rows - x.shape[0]
        rows = nn.functional.pad(x, (0, 0, 0, num_zeros)) if num_zeros else x
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, "none", [], ""
        )
        return out[: x.shape[0]] if num_zeros else out


def parted_weights(
    weights: Mapping[str, Weight], library: NativeLibrary | None
) -> tuple[dict[str, Tensor], dict[str, BlockWeight]]:
    """All weights as tensors, and those in blocks that `pack_decoder` puts in the place of theirs.

    Blocks stay blocks where the `library` multiplies bfloat16 by AMX or AVX-512: their tensors hold
    nothing then. Elsewhere they become bfloat16, or the type of the others, as a plan's numbers
    always do.
    """
    in_blocks = {name: each for name, each in weights.items() if isinstance(each, BlockWeight)}
    norm = weights["norm.weight"]
    assert isinstance(norm, Tensor), "a norm is never in few bits"
    dtype = norm.dtype
    ready = {
        name: dense_weight(each, dtype)
        for name, each in weights.items()
        if not isinstance(each, BlockWeight)
    }
    stays = (
        dtype == torch.bfloat16
        and library is not None
        and _multiplies(LinearCalls(library), torch.bfloat16)
    )
    for name, each in in_blocks.items():
        nothing = torch.empty(each.shape, dtype=dtype, device="meta")
        ready[name] = nothing if stays else each.dense().to(dtype)
    return ready, in_blocks if stays else {}


def pack_decoder(
    decoder: Decoder,
    library: NativeLibrary | None = None,
    in_blocks: Mapping[str, BlockWeight] = MappingProxyType({}),
) -> None:
    """Replace the decoder's linear layers by packed ones, the head too, its norms and gates.

    float32 goes by the CPU `library`, bfloat16 where the processor has AMX or AVX-512 with bf16;
    other bfloat16 goes by oneDNN. A head tied to the embedding takes its size once more, since rows
    of the embedding are still looked up. What neither takes stays, as do other types: nothing is
    promised of its bits.
    `in_blocks`: what takes the place of tensors that hold nothing, by their names.
    """
    calls = None if library is None else LinearCalls(library)
    dtype = dtype_of(decoder)
    by_library = calls if calls is not None and _multiplies(calls, dtype) else None
    if by_library is not None and in_blocks:
        _pack_blocks(decoder, by_library, in_blocks)
    _pack_linear_layers(decoder, by_library)
    if decoder.head is None:
        assert isinstance(decoder.embed, nn.Embedding), "a head in blocks is there by now"
        decoder.head = _packed(by_library, decoder.embed.weight, None)
    if calls is not None:
        _replace_norms(decoder, calls)
    form = f"int{min(each.bits for each in in_blocks.values())}" if in_blocks else dtype
    log.info("linear layers of %s: %s", form, type(decoder.head).__name__)


def dtype_of(decoder: Decoder) -> torch.dtype:
    """What it computes in: that of its norms, which are never in blocks."""
    weight = decoder.norm.weight
    assert isinstance(weight, Tensor), "a norm has a weight"
    return weight.dtype


def _replace_norms(decoder: Decoder, calls: LinearCalls) -> None:
    """Norms and gates by the library: where it can, in one call with the product behind them."""
    for layer in decoder.layers:
        assert isinstance(layer, Layer), "a decoder's layers are all of one class"
        for name, linear in (("attention_norm", layer.qkv), ("mlp_norm", layer.gate_up)):
            norm: nn.Module = _native_norm(getattr(layer, name), calls)
            if isinstance(linear, NativeLinear):
                linear.weight.put_norm_before(norm)
                norm = nn.Identity()
            setattr(layer, name, norm)
        if isinstance(layer.down, NativeLinear):
            layer.down.weight.put_gate_before()
        layer.gate = nn.Identity() if isinstance(layer.down, NativeLinear) else NativeGate(calls)
        for name in ("q_norm", "k_norm"):
            if getattr(layer, name) is not None:
                setattr(layer, name, _native_norm(getattr(layer, name), calls))
        out, gate_up, down = layer.out, layer.gate_up, layer.down
        if (
            isinstance(out, NativeLinear)
            and isinstance(gate_up, NativeLinear)
            and isinstance(down, NativeLinear)
        ):
            layer.tail = NativeTail(calls, out, gate_up, down)
    decoder.norm = _native_norm(decoder.norm, calls)


def _native_norm(norm: nn.Module, calls: LinearCalls) -> NativeNorm:
    assert isinstance(norm, RMSNorm), "it is replaced once"
    return NativeNorm(calls, norm.weight, norm.eps)


def _pack_blocks(
    decoder: Decoder, calls: LinearCalls, in_blocks: Mapping[str, BlockWeight]
) -> None:
    """Put layers over the weights in blocks into the decoder, also the embedding's head."""
    for name, weight in in_blocks.items():
        path = name.removesuffix(".weight")
        if path != "embed":
            linear = decoder.get_submodule(path)
            assert isinstance(linear, nn.Linear), f"{path} is no linear layer"
            decoder.set_submodule(path, NativeLinear(calls, weight, linear.bias))
    embedding = in_blocks["embed.weight"]
    if decoder.head is None:
        decoder.head = NativeLinear(calls, embedding)
    decoder.embed = BlockEmbedding(embedding)


def _multiplies(calls: LinearCalls, dtype: torch.dtype) -> bool:
    """Whether the library is fast for it: for bfloat16 with AMX, or with AVX-512 where a library
    compiled without AMX does not leave the processor's tiles to oneDNN."""
    best = calls.instruction_sets(dtype)[-1:]
    if dtype == torch.bfloat16 and best == [InstructionSet.AVX512_BF16]:
        return not torch.cpu._is_amx_tile_supported()
    return best == [InstructionSet.AMX] if dtype == torch.bfloat16 else bool(best)


def _pack_linear_layers(module: nn.Module, calls: LinearCalls | None) -> None:
    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            _pack_linear_layers(child, calls)
            continue
        packed = _packed(calls, child.weight, child.bias)
        if packed is not None:
            setattr(module, name, packed)


def _packed(
    calls: LinearCalls | None, weight: Tensor, bias: Tensor | None
) -> NativeLinear | PackedLinear | None:
    if calls is not None and calls.takes(weight):
        return NativeLinear(calls, weight, bias)
    if weight.dtype != torch.bfloat16:
        return None
    if torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return PackedLinear(weight, bias)
    return None

"""A checkpoint's weights as the decoder's state dict, or with its matrices in few bits."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from legokv.checkpoint.layout import (
    DecoderTensor,
    check_tensors,
    decoder_tensors,
    input_scale,
    packed_shape,
    packed_weight,
    weight_scale,
)
from legokv.checkpoint.tensor_table import StoredTensor, read_tensor_table
from legokv.errors import UnsupportedModel
from legokv.model.config import ModelConfig
from legokv.model.dtypes import PLAN_FORMS
from legokv.ops.block_weight import BlockWeight, block_weight, stacked
from legokv.ops.quantised_weight import (
    FP8,
    FP8_LARGEST_SCALE,
    QuantisedWeight,
    fp8_weight,
    int4_weight,
    stacked_quantised,
)

Weight = Tensor | BlockWeight | QuantisedWeight


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, form: str = "model"
) -> dict[str, Tensor]:
    """The decoder's tensors in `dtype`, query/key/value and gate/up stacked.

    With another `form` than "model" matrices have what it makes of them, rounded to bfloat16.
    Each is copied once out of the mapped file and no mapping is left behind, so memory holds the
    weights once.
    UnsupportedModel for a tensor that is missing, misshapen, quantised or unused.
    """
    return {name: dense_weight(each, dtype) for name, each in _load(folder, config, dtype, form)}


def load_kept_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, form: str
) -> dict[str, Weight]:
    """As `load_weights`, but with another form than "model" matrices stay in few bits."""
    return dict(_load(folder, config, dtype, form))


def form_of_few_bits(names: Iterable[str]) -> str:
    """Which of PLAN_FORMS' a checkpoint with tensors of these names has; "model" if none."""
    ends = {name.rpartition(".")[2] for name in names}
    if packed_weight("weight") in ends:
        return PLAN_FORMS["int4"]
    return PLAN_FORMS["fp8"] if weight_scale("weight") in ends else "model"


def stored_input_scales(folder: Path, config: ModelConfig) -> dict[str, float]:
    """What a checkpoint divides the inputs of its FP8 products by, by the decoder's products.

    The largest of those of its sources ("q_proj", "k_proj"), which all read one input. Empty where
    one has none: then none is taken. UnsupportedModel for one that is no scale.
    """
    stored = read_tensor_table(folder)
    check_tensors(stored, config)
    by_product: dict[str, float] = {}
    with _readers(stored) as readers:
        for tensor in decoder_tensors(config):
            names = [source.name for source in tensor.sources]
            fp8 = all(name in stored and stored[name].is_fp8 for name in names)
            if not (tensor.is_product and fp8):
                continue
            scales = [input_scale(name) for name in names]
            if not all(scale in stored for scale in scales):
                return {}
            numbers = [_number(scale, readers) for scale in scales]
            by_product[tensor.name.removesuffix(".weight")] = max(numbers)
    return by_product


def _number(name: str, readers: dict[str, Any]) -> float:
    number = float(readers[name].get_tensor(name).bfloat16())
    if not 0 < number < float("inf"):
        raise UnsupportedModel(f"{name} is {number}, which is no scale: fetch the checkpoint again")
    return number


def dense_weight(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight as a tensor, which one in few bits becomes by way of bfloat16."""
    return weight if isinstance(weight, Tensor) else weight.dense().to(dtype)


def _load(
    folder: Path, config: ModelConfig, dtype: torch.dtype, form: str
) -> Iterator[tuple[str, Weight]]:
    stored = read_tensor_table(folder)
    check_tensors(stored, config)
    try:
        yield from _loaded(stored, config, dtype, form)
    except SafetensorError as error:
        raise UnsupportedModel(f"the weights in {folder} can't be read: {error}") from None


def _loaded(
    stored: Mapping[str, StoredTensor], config: ModelConfig, dtype: torch.dtype, form: str
) -> Iterator[tuple[str, Weight]]:
    with _readers(stored) as readers:
        for tensor in decoder_tensors(config):
            yield tensor.name, _weight(tensor, readers, dtype, form)


@contextmanager
def _readers(stored: Mapping[str, StoredTensor]) -> Iterator[dict[str, Any]]:
    """By each tensor's name what reads it from its file."""
    with ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in {tensor.file for tensor in stored.values()}
        }
        yield {name: opened[tensor.file] for name, tensor in stored.items()}


def _weight(
    tensor: DecoderTensor, readers: dict[str, Any], dtype: torch.dtype, form: str
) -> Weight:
    if form == "model" or len(tensor.shape) != 2:
        return _stacked(tensor, readers, dtype)
    if form in PLAN_FORMS.values():
        if not tensor.is_product:
            return _stacked(tensor, readers, dtype)
        return _quantised(tensor, readers, dtype, form)
    # The embedding and a head are of 8 bits in either form.
    return _in_blocks(tensor, readers, 4 if form == "int4" and tensor.is_product else 8)


def _in_blocks(tensor: DecoderTensor, readers: dict[str, Any], bits: int) -> BlockWeight:
    # From what is stored, not from its bfloat16: Q8_0 blocks have more bits.
    return stacked(
        [block_weight(_read(source.name, readers), source.name, bits) for source in tensor.sources]
    )


def _stacked(tensor: DecoderTensor, readers: dict[str, Any], dtype: torch.dtype) -> Tensor:
    stacked = torch.empty(tensor.shape, dtype=dtype)
    row = 0
    for source in tensor.sources:
        rows = source.shape[0]
        stacked[row : row + rows].copy_(_read(source.name, readers))
        row += rows
    return stacked


def _read(name: str, readers: dict[str, Any]) -> Tensor:
    """A stored tensor; numbers of few bits times their scales, in float32."""
    if name not in readers:
        numbers, scales = _unpacked(name, readers), _scales(name, readers).float()
        blocks = numbers.float().view(*scales.shape, -1) * scales[..., None]
        return blocks.flatten(1)
    stored: Tensor = readers[name].get_tensor(name)
    if stored.dtype != FP8:
        return stored
    return _finite_fp8(stored, name).float() * _scales(name, readers).float().view(-1, 1)


def _unpacked(name: str, readers: dict[str, Any]) -> Tensor:
    """INT4 numbers as int8 [N, K]: the first of eight in the lowest bits, 8 more than it is."""
    packed = packed_weight(name)
    words: Tensor = readers[packed].get_tensor(packed)
    _check_shape(name, (words.shape[0], 8 * words.shape[1]), readers)
    parts = [(words >> (4 * place) & 15) - 8 for place in range(8)]
    return torch.stack(parts, -1).flatten(1).char()


def _check_shape(name: str, shape: tuple[int, int], readers: dict[str, Any]) -> None:
    """UnsupportedModel where the checkpoint says of what it packed that it had another shape."""
    shape_tensor = packed_shape(name)
    if shape_tensor not in readers:
        return
    numbers = readers[shape_tensor].get_tensor(shape_tensor).flatten()[:9].tolist()
    if numbers != [*shape]:
        raise UnsupportedModel(
            f"{shape_tensor} is {numbers}, and {packed_weight(name)} has {[*shape]} numbers: "
            "nothing says which of them are the weight's; take another checkpoint"
        )


def _scales(name: str, readers: dict[str, Any]) -> Tensor:
    scale = weight_scale(name)
    scales: Tensor = readers[scale].get_tensor(scale)
    if not bool(((scales > 0) & (scales <= FP8_LARGEST_SCALE)).all()):
        raise UnsupportedModel(
            f"{scale} is not all above 0 and at most {FP8_LARGEST_SCALE:.0e}: fetch the checkpoint "
            "again"
        )
    return scales


def _finite_fp8(numbers: Tensor, name: str) -> Tensor:
    """The same, refused where a byte of E4M3 is no number: it has no infinity, and two of these."""
    none = int((numbers.view(torch.uint8) & 0x7F == 0x7F).sum())
    if none:
        raise UnsupportedModel(
            f"{name} holds {none:,} of {numbers.numel():,} FP8 numbers that are none: fetch the "
            "checkpoint again"
        )
    return numbers


def _quantised(
    tensor: DecoderTensor, readers: dict[str, Any], dtype: torch.dtype, form: str
) -> Weight:
    """A product's weight as a plan has it: of a checkpoint in this form what it has, no more."""
    if form_of_few_bits(readers) != form:
        quantise = fp8_weight if form == PLAN_FORMS["fp8"] else int4_weight
        return quantise(_stacked(tensor, readers, torch.float32), tensor.name)
    parts = [_part(source.name, readers) for source in tensor.sources]
    few = [part for part in parts if part is not None]
    if len(few) < len(parts) or len({part.block for part in few}) > 1:
        return _stacked(tensor, readers, dtype)
    return stacked_quantised(few)


def _part(name: str, readers: dict[str, Any]) -> QuantisedWeight | None:
    """The numbers and scales of a stored weight; None where it is in floats."""
    if name not in readers:
        return QuantisedWeight(_unpacked(name, readers), _scales(name, readers).bfloat16())
    numbers: Tensor = readers[name].get_tensor(name)
    if numbers.dtype != FP8:
        return None
    scales = _scales(name, readers).bfloat16().flatten()
    _finite_fp8(numbers, name)
    return QuantisedWeight(numbers, scales[0] if len(scales) == 1 else scales)

"""A checkpoint's weights as the decoder's state dict, or with its matrices in blocks."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from legokv.checkpoint.layout import DecoderTensor, check_tensors, decoder_tensors
from legokv.checkpoint.tensor_table import StoredTensor, read_tensor_table
from legokv.errors import UnsupportedModel
from legokv.model.config import ModelConfig
from legokv.ops.block_weight import BlockWeight, block_weight, stacked

Weight = Tensor | BlockWeight


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, form: str = "model"
) -> dict[str, Tensor]:
    """The decoder's tensors in `dtype`, query/key/value and gate/up stacked.

    With another `form` than "model" matrices have what it makes of them, rounded to bfloat16.
    Each is copied once out of the mapped file and no mapping is left behind, so memory holds the
    weights once.
    UnsupportedModel for a tensor that is missing, misshapen, quantised or unused.
    """
    return {name: _dense(each, dtype) for name, each in _load(folder, config, dtype, form)}


def load_kept_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, form: str
) -> dict[str, Weight]:
    """As `load_weights`, but with another form than "model" matrices stay in blocks."""
    return dict(_load(folder, config, dtype, form))


def _dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    return weight.dense().to(dtype) if isinstance(weight, BlockWeight) else weight


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
    with ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in {tensor.file for tensor in stored.values()}
        }
        readers = {name: opened[tensor.file] for name, tensor in stored.items()}
        for tensor in decoder_tensors(config):
            bits = _block_bits(tensor, form)
            yield (
                tensor.name,
                _in_blocks(tensor, readers, bits) if bits else _stacked(tensor, readers, dtype),
            )


def _block_bits(tensor: DecoderTensor, form: str) -> int:
    """0 for what stays in its type. The embedding and a head are of 8 bits in each other form."""
    if form == "model" or len(tensor.shape) != 2:
        return 0
    return 4 if form == "int4" and tensor.name.startswith("layers.") else 8


def _in_blocks(tensor: DecoderTensor, readers: dict[str, Any], bits: int) -> BlockWeight:
    # From what is stored, not from its bfloat16: Q8_0 blocks have more bits.
    return stacked(
        [
            block_weight(readers[source.name].get_tensor(source.name), source.name, bits)
            for source in tensor.sources
        ]
    )


def _stacked(tensor: DecoderTensor, readers: dict[str, Any], dtype: torch.dtype) -> Tensor:
    stacked = torch.empty(tensor.shape, dtype=dtype)
    row = 0
    for source in tensor.sources:
        rows = source.shape[0]
        stacked[row : row + rows].copy_(readers[source.name].get_tensor(source.name))
        row += rows
    return stacked

"""A checkpoint's weights as the decoder's state dict."""

from collections.abc import Mapping
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


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The decoder's tensors in `dtype`, query/key/value and gate/up stacked.

    Each is copied once out of the mapped file and no mapping is left behind, so memory holds the
    weights once. UnsupportedModel for a tensor that is missing, misshapen, quantised or unused.
    """
    stored = read_tensor_table(folder)
    check_tensors(stored, config)
    try:
        return _loaded(stored, config, dtype)
    except SafetensorError as error:
        raise UnsupportedModel(f"the weights in {folder} can't be read: {error}") from None


def _loaded(
    stored: Mapping[str, StoredTensor], config: ModelConfig, dtype: torch.dtype
) -> dict[str, Tensor]:
    with ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in {tensor.file for tensor in stored.values()}
        }
        readers = {name: opened[tensor.file] for name, tensor in stored.items()}
        return {tensor.name: _stacked(tensor, readers, dtype) for tensor in decoder_tensors(config)}


def _stacked(tensor: DecoderTensor, readers: dict[str, Any], dtype: torch.dtype) -> Tensor:
    stacked = torch.empty(tensor.shape, dtype=dtype)
    row = 0
    for source in tensor.sources:
        rows = source.shape[0]
        stacked[row : row + rows].copy_(readers[source.name].get_tensor(source.name))
        row += rows
    return stacked

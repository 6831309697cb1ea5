"""Where a checkpoint's tensors lie: safetensors headers, one file or many. No tensors here."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from legokv.checkpoint.config_values import json_object
from legokv.errors import UnsupportedModel
from legokv.model.dtypes import FLOAT_DTYPES

_HEADER_LIMIT_BYTES = 100_000_000
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's bytes: [start, end) of `file`. `dtype` in safetensors' spelling."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint, in name order; pickled weights are refused."""
    if (folder / _SINGLE).is_file():
        return (folder / _SINGLE,)
    if (folder / _INDEX).is_file():
        return tuple(folder / name for name in _shard_names(folder / _INDEX))
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise UnsupportedModel(
            f"{folder} holds pickled weights ({pickled[0]}), which can run code when loaded: "
            "save the model with save_pretrained in safetensors form first"
        )
    raise UnsupportedModel(f"{folder} holds neither {_SINGLE} nor {_INDEX}")


def index_file(folder: Path) -> Path | None:
    """The file that names the shards, where there are shards."""
    sharded = not (folder / _SINGLE).is_file() and (folder / _INDEX).is_file()
    return folder / _INDEX if sharded else None


def read_tensor_table(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name, from the files' headers alone.

    UnsupportedModel for a file that is missing, cut short or not safetensors.
    """
    table: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        table.update((tensor.name, tensor) for tensor in _file_tensors(file))
    return table


def _shard_names(index: Path) -> list[str]:
    weight_map = json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedModel(f"{index} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UnsupportedModel(f"{index} names a file outside its folder: {outside[0]}")
    return names


def _file_tensors(file: Path) -> list[StoredTensor]:
    header, data_start = _header(file)
    tensors = [
        _stored_tensor(name, entry, file, data_start)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    needed = max((tensor.end for tensor in tensors), default=data_start)
    size = file.stat().st_size
    if size < needed:
        raise UnsupportedModel(f"{file} is cut short: {size} bytes of {needed}; fetch it again")
    return tensors


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header and the place where the data begins: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length) if length <= _HEADER_LIMIT_BYTES else b""
        header = json.loads(text)
    except FileNotFoundError:
        raise UnsupportedModel(f"{file} is missing: the checkpoint is incomplete") from None
    except ValueError:
        raise UnsupportedModel(f"{file} is not a safetensors file: no readable header") from None
    return header, 8 + length


def _stored_tensor(name: str, entry: Any, file: Path, data_start: int) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        start, end = (data_start + int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise UnsupportedModel(f"{file}: the header's entry for {name} is damaged") from None
    float_dtype = FLOAT_DTYPES.get(dtype)
    if float_dtype is not None and end - start != prod(shape) * float_dtype.item_bytes:
        raise UnsupportedModel(f"{file}: {name} has {end - start} bytes for {dtype} {list(shape)}")
    return StoredTensor(name, dtype, shape, file, start, end)

"""Where a checkpoint's tensors lie: safetensors headers, one file or many. No tensors here."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from legokv.errors import UnsupportedModel
from legokv.model.dtypes import STORED_DTYPES
from legokv.text.json_file import JsonObject, json_object, parsed_object, refuse_pointer

_HEADER_LIMIT_BYTES = 100_000_000
_POINTER_BYTES = 64
_BLOCK_BYTES = 8 << 20
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_LONGEST_DTYPE = 16


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's bytes: [start, end) of `file`. `dtype` in safetensors' spelling."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def is_fp8(self) -> bool:
        """Whether its numbers want the scale that stands beside them."""
        return self.dtype == "F8_E4M3"

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in order, a few MB at a time; UnsupportedModel if the file ends before."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            left = self.end - self.start
            while left:
                block = stream.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise UnsupportedModel(f"{self.file} ends within {self.name}: fetch it again")
                yield block
                left -= len(block)

    def equals(self, other: "StoredTensor") -> bool:
        """Whether type, shape and every byte are the same."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        return all(
            mine == theirs for mine, theirs in zip(self.blocks(), other.blocks(), strict=True)
        )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint, in name order; pickled weights are refused, and an
    adapter beside them, which others would apply to them."""
    if (folder / _ADAPTER).is_file():
        raise UnsupportedModel(
            f"{folder} holds an adapter ({_ADAPTER}), which would be left out: merge it into the "
            "weights (merge_and_unload of peft), or take its files away"
        )
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

    UnsupportedModel for a file that is missing, cut short or not safetensors, and for a tensor
    that stands in two files.
    """
    table: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for tensor in _file_tensors(file):
            other = table.setdefault(tensor.name, tensor)
            if other is not tensor:
                raise UnsupportedModel(
                    f"{tensor.name} stands in {other.file.name} and in {file.name}: nothing says "
                    "which one is meant"
                )
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


def _header(file: Path) -> tuple[JsonObject, int]:
    """The header and the place where the data begins: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            start = stream.read(_POINTER_BYTES)
            refuse_pointer(start, str(file))
            stream.seek(8)
            length = int.from_bytes(start[:8], "little")
            text = stream.read(length) if length <= _HEADER_LIMIT_BYTES else b""
    except FileNotFoundError:
        raise UnsupportedModel(f"{file} is missing: the checkpoint is incomplete") from None
    try:
        return parsed_object(text, f"the header of {file}"), 8 + length
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{file} is not a safetensors file: {error}") from None


def _stored_tensor(name: str, entry: Any, file: Path, data_start: int) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], tuple(_size(size) for size in entry["shape"])
        start, end = (data_start + _size(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise UnsupportedModel(f"{file}: the header's entry for {name[:80]} is damaged") from None
    if not isinstance(dtype, str) or len(dtype) > _LONGEST_DTYPE:
        raise UnsupportedModel(f"{file}: {name[:80]} names no type: {str(dtype)[:80]!r}")
    if end < start:
        raise UnsupportedModel(f"{file}: {name[:80]} ends at byte {end}, before its start {start}")
    float_dtype = STORED_DTYPES.get(dtype)
    if float_dtype is not None and end - start != prod(shape) * float_dtype.item_bytes:
        raise UnsupportedModel(
            f"{file}: {name[:80]} has {end - start} bytes for {dtype} {list(shape)}"
        )
    return StoredTensor(name, dtype, shape, file, start, end)


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value

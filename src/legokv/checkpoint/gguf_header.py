"""What a GGUF file says of itself: settings, and its tensors' names and sizes. No tensors here.

The file may come from anywhere, so every count in it is held against the bytes that are there
before anything is made of so many.
"""

import mmap
import struct
from collections.abc import Hashable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from legokv.errors import UnsupportedModel
from legokv.text.json_file import refuse_pointer

_START = struct.Struct("<4sIQQ")
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_MAX_DIMENSIONS = 4
_ALIGNMENT = 32
_V = TypeVar("_V")


@dataclass(frozen=True)
class GgufHeader:
    """Settings by key, arrays as lists; tensors' sizes by name, innermost first."""

    settings: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]


def read_gguf_header(file: Path) -> GgufHeader:
    """The header of a GGUF file; UnsupportedModel if it is damaged, or its data are cut short."""
    try:
        with file.open("rb") as stream:
            refuse_pointer(stream.read(_START.size * 2), str(file))
            if file.stat().st_size < _START.size:
                raise UnsupportedModel(f"{file} is not a readable GGUF file: it is too short")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as body:
                return _Reader(body, file).header()
    except FileNotFoundError:
        raise UnsupportedModel(f"{file} does not exist") from None


class _Reader:
    """Walks a file's bytes once; every step is checked against its end."""

    def __init__(self, body: mmap.mmap, file: Path) -> None:
        self._body = body
        self._file = file
        self._at = 0

    def header(self) -> GgufHeader:
        magic, version, num_tensors, num_settings = _START.unpack_from(self._body)
        self._at = _START.size
        if magic != b"GGUF" or version not in _VERSIONS:
            raise self._damaged("it begins otherwise, or is of another version or byte order")
        settings: dict[str, Any] = {}
        for _ in range(num_settings):
            self._put(settings, self._text(), self._value(self._number("I")))
        places: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            self._put(places, self._text(), self._place())
        self._check_data(places, settings.get("general.alignment", _ALIGNMENT))
        return GgufHeader(settings, {name: place[0] for name, place in places.items()})

    def _put(self, table: dict[str, _V], name: str, value: _V) -> None:
        if name in table:
            raise self._damaged(f"it names {name[:80]!r} twice")
        table[name] = value

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array()
        return self._number(self._scalar(kind))

    def _array(self) -> list[Any]:
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            # At least a length each: so many can't be in fewer bytes.
            self._check_left(8 * count)
            return [self._text() for _ in range(count)]
        form = self._scalar(kind)
        start = self._take(struct.calcsize(form) * count)
        return list(struct.unpack_from(f"<{count}{form}", self._body, start))

    def _place(self) -> tuple[tuple[int, ...], int, int]:
        num_dimensions = self._number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise self._damaged(f"a tensor of {num_dimensions} dimensions")
        sizes = tuple(self._number("Q") for _ in range(num_dimensions))
        return sizes, self._number("I"), self._number("Q")

    def _check_data(
        self, places: dict[str, tuple[tuple[int, ...], int, int]], alignment: Hashable
    ) -> None:
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self._damaged(f"an alignment of {alignment!r} bytes")
        start = -(-self._at // alignment) * alignment
        for name, (sizes, kind, offset) in places.items():
            end = start + offset + self._num_bytes(name, sizes, kind)
            if end > len(self._body):
                raise UnsupportedModel(
                    f"{self._file} is cut short: {len(self._body)} bytes, {name[:80]} ends at "
                    f"{end}; fetch it again"
                )

    def _num_bytes(self, name: str, sizes: tuple[int, ...], kind: int) -> int:
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise UnsupportedModel(
                f"{self._file}: {name[:80]} is of type {kind}, which is not known here"
            ) from None
        if not sizes or not all(sizes) or sizes[0] % block:
            raise self._damaged(f"{name[:80]} has sizes {list(sizes)}")
        return prod(sizes) // block * block_bytes

    def _text(self) -> str:
        length = self._number("Q")
        start = self._take(length)
        return self._body[start : start + length].decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        start = self._take(struct.calcsize(f"<{form}"))
        return struct.unpack_from(f"<{form}", self._body, start)[0]

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._damaged(f"a value of type {kind}")
        return _SCALARS[kind]

    def _take(self, num_bytes: int) -> int:
        """Where the next `num_bytes` begin, which are taken."""
        self._check_left(num_bytes)
        start, self._at = self._at, self._at + num_bytes
        return start

    def _check_left(self, num_bytes: int) -> None:
        if num_bytes > len(self._body) - self._at:
            raise self._damaged(
                f"{num_bytes} bytes are to follow byte {self._at}, {len(self._body)} are there"
            )

    def _damaged(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self._file} is not a readable GGUF file: {why}")

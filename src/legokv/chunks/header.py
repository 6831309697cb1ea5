"""The header of a stored chunk: safetensors' own layout, with the chunk's identity as metadata.

It is written here rather than by the safetensors package: that package does not promise an order
of the metadata, and a chunk's stored bytes must be the same whoever compiled it. No tensors here.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from typing import Any, Literal, get_args

from legokv.chunks.chunk import kv_dtype_name
from legokv.errors import ChunkUnreadable
from legokv.model.config import ModelConfig
from legokv.model.dtypes import FLOAT_DTYPES

INT8 = "I8"
_RANKING = "F32"
_RANKING_BYTES = 4
StoredDtype = Literal["model", "int8"]
STORED_DTYPES: tuple[StoredDtype, ...] = get_args(StoredDtype)

# A header is a few hundred bytes; a length past this is damage, not a reason to read gigabytes.
_MAX_HEADER_BYTES = 65536


@dataclass(frozen=True)
class KvLayout:
    """How the bytes behind a header lie: scales, if there are any, KV of `shape`, then a ranking.

    shape: [L, 2, n, G, D]. dtype: safetensors' name of the model's type. is_int8: the KV is int8,
    and `dtype` is that of its scales [L, 2, n, G]. is_ranked: float32 [n] follows.
    """

    dtype: str
    shape: tuple[int, ...]
    is_int8: bool = False
    is_ranked: bool = False

    @property
    def scale_bytes(self) -> int:
        """Where the KV begins."""
        return math.prod(self.shape[:-1]) * self._element_bytes if self.is_int8 else 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all together."""
        return self.ranking_start + (_RANKING_BYTES * self.shape[2] if self.is_ranked else 0)

    @property
    def ranking_start(self) -> int:
        """Where the KV ends."""
        size = 1 if self.is_int8 else self._element_bytes
        return self.scale_bytes + math.prod(self.shape) * size

    @property
    def kv_dtype(self) -> str:
        """What a chunk's key calls this type."""
        return kv_dtype_name(FLOAT_DTYPES[self.dtype].name, "int8" if self.is_int8 else "model")

    @property
    def _element_bytes(self) -> int:
        return FLOAT_DTYPES[self.dtype].item_bytes


def kv_shape(config: ModelConfig, num_tokens: int) -> tuple[int, ...]:
    """[L, 2, n, G, D]: that of a chunk of so many tokens of a model."""
    return (config.num_layers, 2, num_tokens, config.num_kv_heads, config.head_size)


def stored_dtype_names() -> tuple[str, ...]:
    """Every type that chunks' keys may name."""
    return tuple(
        kv_dtype_name(dtype.name, stored)
        for dtype in FLOAT_DTYPES.values()
        for stored in STORED_DTYPES
    )


def max_stored_bytes(config: ModelConfig, num_tokens: int) -> int:
    """What a chunk of so many tokens of a model takes at most, its header with it."""
    shape = kv_shape(config, num_tokens)
    layouts = (KvLayout(name, shape, is_ranked=True) for name in FLOAT_DTYPES)
    return 8 + _MAX_HEADER_BYTES + max(layout.num_bytes for layout in layouts)


def token_bytes(config: ModelConfig, kv_dtype: str, stored_dtype: str) -> int:
    """What one token's KV of a model takes, stored, its chunk's header aside."""
    name = next(name for name, dtype in FLOAT_DTYPES.items() if dtype.name == kv_dtype)
    return KvLayout(name, kv_shape(config, 1), stored_dtype == "int8").num_bytes


@dataclass(frozen=True)
class ChunkHeader:
    """What a stored chunk says of itself."""

    version: str
    key: str
    token_digest: str
    checksum: str
    layout: KvLayout


def kv_checksum(layout: KvLayout, data: memoryview) -> str:
    """SHA-256 of the bytes behind their type and shape, so that a damaged shape shows too."""
    scaled = f"{INT8} by " if layout.is_int8 else ""
    ranked = "ranked " if layout.is_ranked else ""
    digest = hashlib.sha256(f"{ranked}{scaled}{layout.dtype} {list(layout.shape)} ".encode())
    digest.update(data)
    return digest.hexdigest()


def encode_header(header: ChunkHeader) -> bytes:
    """The bytes before the KV; the same header gives the same bytes, a multiple of 8."""
    fields: dict[str, Any] = {
        "__metadata__": {
            "checksum": header.checksum,
            "key": header.key,
            "token_digest": header.token_digest,
            "version": header.version,
        },
        **_tensors(header.layout),
    }
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _tensors(layout: KvLayout) -> dict[str, Any]:
    kv = {
        "dtype": INT8 if layout.is_int8 else layout.dtype,
        "shape": list(layout.shape),
        "data_offsets": [layout.scale_bytes, layout.ranking_start],
    }
    tensors = {"kv": kv}
    if layout.is_ranked:
        tensors["ranking"] = {
            "dtype": _RANKING,
            "shape": [layout.shape[2]],
            "data_offsets": [layout.ranking_start, layout.num_bytes],
        }
    if layout.is_int8:
        tensors["scales"] = {
            "dtype": layout.dtype,
            "shape": list(layout.shape[:-1]),
            "data_offsets": [0, layout.scale_bytes],
        }
    return tensors


def decode_header(content: bytes | bytearray) -> tuple[ChunkHeader, int]:
    """The header of a whole file's content and where the KV starts; ChunkUnreadable if damaged."""
    if len(content) < 8:
        raise ChunkUnreadable(f"it is short: {len(content)} bytes", "length")
    (length,) = struct.unpack_from("<Q", content)
    if length > min(_MAX_HEADER_BYTES, len(content) - 8):
        raise ChunkUnreadable(
            f"it is short: a header of {length} in {len(content)} bytes", "length"
        )
    try:
        header = _from_fields(json.loads(content[8 : 8 + length]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ChunkUnreadable(f"its header is damaged: {error!r}", "header") from error
    return header, 8 + length


def _from_fields(fields: dict[str, Any]) -> ChunkHeader:
    metadata = fields["__metadata__"]
    return ChunkHeader(
        version=str(metadata["version"]),
        key=str(metadata["key"]),
        token_digest=str(metadata["token_digest"]),
        checksum=str(metadata["checksum"]),
        layout=_layout(fields),
    )


def _layout(fields: dict[str, Any]) -> KvLayout:
    kv = fields["kv"]
    is_int8 = kv["dtype"] == INT8
    dtype = fields["scales"]["dtype"] if is_int8 else kv["dtype"]
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"no KV is stored as {dtype}")
    shape = tuple(int(size) for size in kv["shape"])
    layout = KvLayout(dtype, shape, is_int8, "ranking" in fields)
    if is_int8 and fields["scales"]["shape"] != list(layout.shape[:-1]):
        raise ValueError(f"scales of {fields['scales']['shape']} for KV of {kv['shape']}")
    if layout.is_ranked and fields["ranking"]["shape"] != [shape[2]]:
        raise ValueError(f"a ranking of {fields['ranking']['shape']} for KV of {kv['shape']}")
    return layout

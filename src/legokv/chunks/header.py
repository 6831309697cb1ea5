"""The header of a stored chunk: safetensors' own layout, with the chunk's identity as metadata.

It is written here rather than by the safetensors package: that package does not promise an order
of the metadata, and a chunk's stored bytes must be the same whoever compiled it. No tensors here.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from legokv.errors import ChunkUnreadable

# safetensors' names of the types KV is stored in, and their bytes per element.
ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
# What a chunk's key calls them.
KV_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

# A header is a few hundred bytes; a length past this is damage, not a reason to read gigabytes.
_MAX_HEADER_BYTES = 65536


@dataclass(frozen=True)
class ChunkHeader:
    """What a stored chunk says of itself; `shape` is [L, 2, n, G, D], `dtype` safetensors' name."""

    version: str
    key: str
    token_digest: str
    checksum: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of KV behind the header."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


def kv_checksum(dtype: str, shape: tuple[int, ...], data: memoryview) -> str:
    """SHA-256 of the KV bytes behind their type and shape, so that a damaged shape shows too."""
    digest = hashlib.sha256(f"{dtype} {list(shape)} ".encode())
    digest.update(data)
    return digest.hexdigest()


def encode_header(header: ChunkHeader) -> bytes:
    """The bytes before the KV; the same header gives the same bytes, a multiple of 8."""
    fields = {
        "__metadata__": {
            "checksum": header.checksum,
            "key": header.key,
            "token_digest": header.token_digest,
            "version": header.version,
        },
        "kv": {
            "dtype": header.dtype,
            "shape": list(header.shape),
            "data_offsets": [0, header.num_bytes],
        },
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


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
    metadata, kv = fields["__metadata__"], fields["kv"]
    if kv["dtype"] not in ELEMENT_BYTES:
        raise ValueError(f"no KV is stored as {kv['dtype']}")
    return ChunkHeader(
        version=str(metadata["version"]),
        key=str(metadata["key"]),
        token_digest=str(metadata["token_digest"]),
        checksum=str(metadata["checksum"]),
        dtype=kv["dtype"],
        shape=tuple(int(size) for size in kv["shape"]),
    )

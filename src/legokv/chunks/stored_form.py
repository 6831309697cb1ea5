"""One chunk's KV as bytes and back, for every tier that keeps bytes. No files, no connections."""

from dataclasses import dataclass

import torch

from legokv.chunks.header import ChunkHeader, decode_header, encode_header, kv_checksum
from legokv.chunks.key import CHUNK_FORMAT_VERSION, TokenIds, token_digest
from legokv.errors import ChunkUnreadable

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk's stored bytes: `header`, then `data`, which is the KV itself and not a copy."""

    header: bytes
    data: memoryview

    @property
    def num_bytes(self) -> int:
        return len(self.header) + self.data.nbytes


def encode_chunk(key: str, token_ids: TokenIds, kv: torch.Tensor) -> EncodedChunk:
    """The stored form of `kv` [L, 2, n, G, D] for its n ids; the same KV gives the same bytes."""
    _check_kv(kv, len(token_ids))
    data = kv.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
    dtype, shape = _DTYPE_NAMES[kv.dtype], tuple(kv.shape)
    header = ChunkHeader(
        version=str(CHUNK_FORMAT_VERSION),
        key=key,
        token_digest=token_digest(token_ids),
        checksum=kv_checksum(dtype, shape, data),
        dtype=dtype,
        shape=shape,
    )
    return EncodedChunk(encode_header(header), data)


def stored_bytes(content: bytearray) -> EncodedChunk:
    """Bytes that were read whole, to be written as they are."""
    _, start = decode_header(content)
    return EncodedChunk(bytes(content[:start]), memoryview(content)[start:])


def decode_chunk(content: bytearray, key: str, token_ids: TokenIds) -> torch.Tensor:
    """The KV stored for exactly this key and these ids, over `content` itself.

    ChunkUnreadable, saying what was wrong, if the bytes are short, damaged or another chunk's.
    """
    header, start = decode_header(content)
    _check_identity(header, key)
    if header.token_digest != token_digest(token_ids):
        raise ChunkUnreadable(
            f"it was compiled from other token ids than these {len(token_ids)}", "identity"
        )
    if header.shape[2] != len(token_ids):
        raise ChunkUnreadable(
            f"it holds KV of shape {list(header.shape)}, not [L, 2, {len(token_ids)}, G, D]",
            "header",
        )
    _check_data(header, content, start)
    return torch.frombuffer(content, dtype=_DTYPES[header.dtype], offset=start).view(header.shape)


def check_chunk(content: bytearray, key: str) -> ChunkHeader:
    """The header of bytes that are whole and this key's; ChunkUnreadable says what is wrong.

    All that can be checked without the token ids: whoever has them compares the digest as well.
    """
    header, start = decode_header(content)
    _check_identity(header, key)
    _check_data(header, content, start)
    if encode_header(header) != content[:start]:
        raise ChunkUnreadable("its header is damaged: not as this program writes it", "header")
    return header


def _check_identity(header: ChunkHeader, key: str) -> None:
    if header.version != str(CHUNK_FORMAT_VERSION):
        raise ChunkUnreadable(
            f"it has format version {header.version}, this program reads {CHUNK_FORMAT_VERSION}",
            "header",
        )
    if header.key != key:
        raise ChunkUnreadable(f"it holds chunk {header.key}, not {key}", "identity")
    shape = header.shape
    if len(shape) != 5 or shape[1] != 2 or min(shape) < 1:
        raise ChunkUnreadable(f"it holds KV of shape {list(shape)}, not [L, 2, n, G, D]", "header")


def _check_data(header: ChunkHeader, content: bytearray, start: int) -> None:
    if len(content) - start != header.num_bytes:
        raise ChunkUnreadable(
            f"it holds {len(content) - start} bytes of KV, its header says {header.num_bytes}",
            "length",
        )
    if kv_checksum(header.dtype, header.shape, memoryview(content)[start:]) != header.checksum:
        raise ChunkUnreadable("the checksum of its KV differs", "checksum")


def _check_kv(kv: torch.Tensor, num_tokens: int) -> None:
    if kv.ndim != 5 or kv.shape[1] != 2 or kv.shape[2] != num_tokens or 0 in kv.shape:
        raise ValueError(f"KV of {num_tokens} tokens is [L, 2, n, G, D], not {list(kv.shape)}")
    if kv.dtype not in _DTYPE_NAMES:
        raise ValueError(f"KV is stored as {', '.join(_DTYPES)}, not {kv.dtype}")

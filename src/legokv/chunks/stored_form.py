"""One chunk's KV as bytes and back, for every tier that keeps bytes. No files, no connections."""

import math
from dataclasses import dataclass

import torch

from legokv.chunks.chunk import CHUNK_FORMAT_VERSION, TokenIds, token_digest
from legokv.chunks.header import (
    ChunkHeader,
    KvLayout,
    decode_header,
    encode_header,
    kv_checksum,
)
from legokv.chunks.stored_kv import Int8Kv, RankedKv, StoredKv, split_ranking
from legokv.errors import ChunkUnreadable
from legokv.model.dtypes import FLOAT_DTYPES

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype.name) for name, dtype in FLOAT_DTYPES.items()
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk's stored bytes: `header`, then `data`, no copy of KV in the model's type."""

    header: bytes
    data: memoryview

    @property
    def num_bytes(self) -> int:
        return len(self.header) + self.data.nbytes


def encode_chunk(key: str, token_ids: TokenIds, kv: StoredKv) -> EncodedChunk:
    """The stored form of `kv` [L, 2, n, G, D] for its n ids; the same KV gives the same bytes."""
    kv, scores = split_ranking(kv)
    values = kv.values if isinstance(kv, Int8Kv) else kv
    dtype = kv.scales.dtype if isinstance(kv, Int8Kv) else kv.dtype
    _check_kv(values, dtype, len(token_ids))
    shape, is_int8 = tuple(values.shape), isinstance(kv, Int8Kv)
    layout = KvLayout(_DTYPE_NAMES[dtype], shape, is_int8, scores is not None)
    data = _data(kv, scores)
    header = ChunkHeader(
        version=str(CHUNK_FORMAT_VERSION),
        key=key,
        token_digest=token_digest(token_ids),
        checksum=kv_checksum(layout, data),
        layout=layout,
    )
    return EncodedChunk(encode_header(header), data)


def stored_bytes(content: bytearray) -> EncodedChunk:
    """Bytes that were read whole, to be written as they are."""
    _, start = decode_header(content)
    return EncodedChunk(bytes(content[:start]), memoryview(content)[start:])


def decode_chunk(content: bytearray, key: str, token_ids: TokenIds) -> StoredKv:
    """The KV stored for exactly this key and these ids, over `content` itself.

    ChunkUnreadable, saying what was wrong, if the bytes are short, damaged or another chunk's.
    """
    header, start = decode_header(content)
    _check_identity(header, key)
    if header.token_digest != token_digest(token_ids):
        raise ChunkUnreadable(
            f"it was compiled from other token ids than these {len(token_ids)}", "identity"
        )
    shape = header.layout.shape
    if shape[2] != len(token_ids):
        raise ChunkUnreadable(
            f"it holds KV of shape {list(shape)}, not [L, 2, {len(token_ids)}, G, D]",
            "header",
        )
    _check_data(header, content, start)
    return _kv(content, start, header.layout)


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


def is_finite(content: bytearray) -> bool:
    """Whether a whole chunk's KV has neither NaN nor infinity."""
    header, start = decode_header(content)
    kv = _kv(content, start, header.layout)
    kv, scores = split_ranking(kv)
    parts = [kv.scales if isinstance(kv, Int8Kv) else kv, *([] if scores is None else [scores])]
    return all(bool(torch.isfinite(part).all()) for part in parts)


def _data(kv: torch.Tensor | Int8Kv, scores: torch.Tensor | None) -> memoryview:
    parts = [kv.scales, kv.values] if isinstance(kv, Int8Kv) else [kv]
    parts += [] if scores is None else [scores]
    if len(parts) == 1:
        return _bytes(parts[0]).numpy().data
    return torch.cat([_bytes(part) for part in parts]).numpy().data


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().view(torch.uint8).flatten()


def _kv(content: bytearray, start: int, layout: KvLayout) -> StoredKv:
    kv = _kv_alone(content, start, layout)
    if not layout.is_ranked:
        return kv
    # Copied: its bytes need not lie as numbers of four bytes want to.
    ranking = bytearray(memoryview(content)[start + layout.ranking_start :])
    return RankedKv(kv, torch.frombuffer(ranking, dtype=torch.float32))


def _kv_alone(content: bytearray, start: int, layout: KvLayout) -> torch.Tensor | Int8Kv:
    dtype, shape = _DTYPES[layout.dtype], layout.shape
    count = math.prod(shape)
    if not layout.is_int8:
        return torch.frombuffer(content, dtype=dtype, count=count, offset=start).view(shape)
    values_start = start + layout.scale_bytes
    scales = torch.frombuffer(content, dtype=dtype, count=math.prod(shape[:-1]), offset=start)
    values = torch.frombuffer(content, dtype=torch.int8, count=count, offset=values_start)
    return Int8Kv(values.view(shape), scales.view(shape[:-1]))


def _check_identity(header: ChunkHeader, key: str) -> None:
    if header.version != str(CHUNK_FORMAT_VERSION):
        raise ChunkUnreadable(
            f"it has format version {header.version}, this program reads {CHUNK_FORMAT_VERSION}",
            "header",
        )
    if header.key != key:
        raise ChunkUnreadable(f"it holds chunk {header.key}, not {key}", "identity")
    shape = header.layout.shape
    if len(shape) != 5 or shape[1] != 2 or min(shape) < 1:
        raise ChunkUnreadable(f"it holds KV of shape {list(shape)}, not [L, 2, n, G, D]", "header")


def _check_data(header: ChunkHeader, content: bytearray, start: int) -> None:
    num_bytes = header.layout.num_bytes
    if len(content) - start != num_bytes:
        raise ChunkUnreadable(
            f"it holds {len(content) - start} bytes of KV, its header says {num_bytes}",
            "length",
        )
    if kv_checksum(header.layout, memoryview(content)[start:]) != header.checksum:
        raise ChunkUnreadable("the checksum of its KV differs", "checksum")


def _check_kv(kv: torch.Tensor, dtype: torch.dtype, num_tokens: int) -> None:
    if kv.ndim != 5 or kv.shape[1] != 2 or kv.shape[2] != num_tokens or 0 in kv.shape:
        raise ValueError(f"KV of {num_tokens} tokens is [L, 2, n, G, D], not {list(kv.shape)}")
    if dtype not in _DTYPE_NAMES:
        raise ValueError(f"KV is stored as {', '.join(_DTYPES)}, or int8 of these, not {dtype}")

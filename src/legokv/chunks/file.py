"""The stored form of one chunk: a safetensors file that is written whole and read suspiciously."""

import os
import uuid
from pathlib import Path

import torch

from legokv.chunks.header import ChunkHeader, decode_header, encode_header, kv_checksum
from legokv.chunks.key import CHUNK_FORMAT_VERSION, TokenIds, token_digest
from legokv.errors import ChunkUnreadable

TEMPORARY_SUFFIX = ".tmp"

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_chunk(path: Path, key: str, token_ids: TokenIds, kv: torch.Tensor) -> None:
    """Store `kv` [L, 2, n, G, D] for its n token ids at `path`, whole or not at all.

    The same key, ids and KV give the same bytes. Once this returns the file survives a power cut.
    A process killed on the way leaves a file that ends in TEMPORARY_SUFFIX and nothing else.
    """
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb") as file:
            file.write(encode_header(header))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_chunk(path: Path, key: str, token_ids: TokenIds) -> torch.Tensor:
    """The KV [L, 2, n, G, D] stored for exactly this key and these ids, on the CPU.

    ChunkUnreadable, saying what was wrong, if the file is gone, short, damaged or another's.
    """
    try:
        with open(path, "rb") as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
            del content[file.readinto(content) :]
    except OSError as error:
        raise ChunkUnreadable(f"chunk file {path}: {error.strerror}") from error
    try:
        return _verified_kv(content, key, token_ids)
    except ChunkUnreadable as error:
        raise ChunkUnreadable(f"chunk file {path}: {error}") from error


def _verified_kv(content: bytearray, key: str, token_ids: TokenIds) -> torch.Tensor:
    header, start = decode_header(content)
    _check_identity(header, key, token_ids)
    if len(content) - start != header.num_bytes:
        raise ChunkUnreadable(
            f"it holds {len(content) - start} bytes of KV, its header says {header.num_bytes}"
        )
    if kv_checksum(header.dtype, header.shape, memoryview(content)[start:]) != header.checksum:
        raise ChunkUnreadable("the checksum of its KV differs")
    return torch.frombuffer(content, dtype=_DTYPES[header.dtype], offset=start).view(header.shape)


def _check_identity(header: ChunkHeader, key: str, token_ids: TokenIds) -> None:
    if header.version != str(CHUNK_FORMAT_VERSION):
        raise ChunkUnreadable(
            f"it has format version {header.version}, this program reads {CHUNK_FORMAT_VERSION}"
        )
    if header.key != key:
        raise ChunkUnreadable(f"it holds chunk {header.key}, not {key}")
    if header.token_digest != token_digest(token_ids):
        raise ChunkUnreadable(f"it was compiled from other token ids than these {len(token_ids)}")
    shape = header.shape
    if len(shape) != 5 or shape[1] != 2 or shape[2] != len(token_ids) or min(shape) < 1:
        raise ChunkUnreadable(
            f"it holds KV of shape {list(shape)}, not [L, 2, {len(token_ids)}, G, D]"
        )


def _check_kv(kv: torch.Tensor, num_tokens: int) -> None:
    if kv.ndim != 5 or kv.shape[1] != 2 or kv.shape[2] != num_tokens or 0 in kv.shape:
        raise ValueError(f"KV of {num_tokens} tokens is [L, 2, n, G, D], not {list(kv.shape)}")
    if kv.dtype not in _DTYPE_NAMES:
        raise ValueError(f"KV is stored as {', '.join(_DTYPES)}, not {kv.dtype}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

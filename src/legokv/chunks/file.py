"""One chunk as a safetensors file that is written whole and read suspiciously."""

import os
import uuid
from pathlib import Path

from legokv.chunks.header import ChunkHeader
from legokv.chunks.key import TokenIds
from legokv.chunks.stored_form import EncodedChunk, check_chunk, decode_chunk, encode_chunk
from legokv.chunks.stored_kv import StoredKv
from legokv.errors import ChunkUnreadable, UnreadableReason

TEMPORARY_SUFFIX = ".tmp"


def write_chunk(path: Path, key: str, token_ids: TokenIds, kv: StoredKv) -> None:
    """Store `kv` [L, 2, n, G, D] for its n token ids at `path`, whole or not at all."""
    write_encoded(path, encode_chunk(key, token_ids, kv))


def write_encoded(path: Path, encoded: EncodedChunk) -> None:
    """Store a chunk's bytes at `path`, whole or not at all.

    Once this returns the file survives a power cut. A process killed on the way leaves a file
    that ends in TEMPORARY_SUFFIX and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb") as file:
            file.write(encoded.header)
            file.write(encoded.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_chunk(path: Path, key: str, token_ids: TokenIds) -> StoredKv:
    """The KV stored for exactly this key and these ids, on the CPU.

    ChunkUnreadable, saying what was wrong, if the file is gone, short, damaged or another's.
    """
    content = _content(path)
    try:
        return decode_chunk(content, key, token_ids)
    except ChunkUnreadable as error:
        raise ChunkUnreadable(f"chunk file {path}: {error}", error.reason) from error


def verify_file(path: Path, key: str) -> ChunkHeader:
    """The header of a file that is whole and this key's; ChunkUnreadable says what is wrong."""
    content = _content(path)
    try:
        return check_chunk(content, key)
    except ChunkUnreadable as error:
        raise ChunkUnreadable(f"chunk file {path}: {error}", error.reason) from error


def _content(path: Path) -> bytearray:
    try:
        with open(path, "rb") as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
            del content[file.readinto(content) :]
            return content
    except OSError as error:
        reason: UnreadableReason = "missing" if isinstance(error, FileNotFoundError) else "io"
        raise ChunkUnreadable(f"chunk file {path}: {error.strerror}", reason) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

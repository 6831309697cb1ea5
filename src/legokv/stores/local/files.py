"""The folder of one model's chunk files: one file a chunk, found by key. No budget, no SQL."""

import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from legokv.chunks.chunk import Chunk, TokenIds
from legokv.chunks.header import ChunkHeader
from legokv.chunks.stored_form import EncodedChunk, check_chunk, decode_chunk, encode_chunk
from legokv.chunks.stored_kv import StoredKv
from legokv.errors import ChunkUnreadable, UnreadableReason
from legokv.whole_files import PRIVATE_FOLDER, private_opener

TEMPORARY_SUFFIX = ".tmp"


def write_chunk(path: Path, key: str, token_ids: TokenIds, kv: StoredKv) -> None:
    """Store `kv` [L, 2, n, G, D] for its n token ids at `path`, whole or not at all."""
    write_encoded(path, encode_chunk(key, token_ids, kv))


def write_encoded(path: Path, encoded: EncodedChunk) -> None:
    """Store a chunk's bytes at `path`, whole or not at all.

    Once this returns the file survives a power cut. A process killed on the way leaves a file
    that ends in TEMPORARY_SUFFIX and nothing else.
    """
    path.parent.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    path.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb", opener=private_opener) as file:
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


_SUFFIX = ".safetensors"
_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class ChunkFile:
    """A file that by its name holds a chunk."""

    key: str
    path: Path
    num_bytes: int


class ChunkFolder:
    """Files under `root`. Safe for several processes; files may vanish at any time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the chunk of that key lies, or would."""
        return self.root / key[:2] / f"{key}{_SUFFIX}"

    def has(self, key: str) -> bool:
        # Unlike Path.is_file, it says no of a folder that may not be entered.
        return os.path.isfile(self.path(key))

    def read(self, chunk: Chunk) -> StoredKv:
        """The chunk's KV; ChunkUnreadable if it is not whole and its own."""
        return read_chunk(self.path(chunk.key), chunk.key, chunk.token_ids)

    def write(self, key: str, encoded: EncodedChunk) -> None:
        """Keep the chunk's bytes; a file already there is replaced whole."""
        write_encoded(self.path(key), encoded)

    def verify(self, key: str) -> ChunkHeader:
        """The header of the chunk's file; ChunkUnreadable if it is not whole and this key's."""
        return verify_file(self.path(key), key)

    def remove(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def files(self) -> Iterator[ChunkFile]:
        """All chunk files that are there now; other files are passed over."""
        for path in sorted(self.root.glob(f"??/*{_SUFFIX}")):
            key = path.name.removesuffix(_SUFFIX)
            if _KEY.fullmatch(key) and path == self.path(key) and path.is_file():
                yield ChunkFile(key, path, path.stat().st_size)

    def temporary_files(self) -> list[Path]:
        """What writers have begun and not finished."""
        return sorted(self.root.glob(f"??/.*{_SUFFIX}.*{TEMPORARY_SUFFIX}"))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Held while a file and its row come and go; several may write at once."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def mending(self) -> Iterator[None]:
        """Held alone: no process is between a file and its row. Ends with the process."""
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        # Beside the folder, which may be removed at any time.
        self.root.parent.mkdir(parents=True, exist_ok=True)
        path = self.root.with_name(f"{self.root.name}.lock")
        with open(path, "w", opener=private_opener) as lock:
            fcntl.flock(lock, kind)
            yield

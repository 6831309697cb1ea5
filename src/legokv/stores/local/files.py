"""The folder of one model's chunk files: one file a chunk, found by key. No budget, no SQL."""

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from legokv.chunks.chunk import Chunk
from legokv.chunks.file import TEMPORARY_SUFFIX, read_chunk, verify_file, write_encoded
from legokv.chunks.header import ChunkHeader
from legokv.chunks.stored_form import EncodedChunk
from legokv.chunks.stored_kv import StoredKv

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
        return self.path(key).is_file()

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
        with open(self.root.with_name(f"{self.root.name}.lock"), "w") as lock:
            fcntl.flock(lock, kind)
            yield

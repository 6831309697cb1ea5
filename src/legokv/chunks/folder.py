"""The disk tier: chunks of one engine's fingerprint as files in one folder."""

from pathlib import Path

from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.chunks.file import read_chunk, write_chunk


class ChunkFolder:
    """Files under `root`, one a chunk, found by key. Safe for several processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        """Where the chunk of that key lies, or would."""
        return self._root / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        return self.path(key).is_file()

    def read(self, chunk: Chunk) -> Tensor:
        """The chunk's KV [L, 2, n, G, D]; ChunkUnreadable if it is not whole and its own."""
        return read_chunk(self.path(chunk.key), chunk.key, chunk.token_ids)

    def write(self, chunk: Chunk, kv: Tensor) -> None:
        """Keep the chunk's KV [L, 2, n, G, D]; a file already there is replaced whole."""
        write_chunk(self.path(chunk.key), chunk.key, chunk.token_ids, kv)

    def remove(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

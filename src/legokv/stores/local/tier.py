"""The disk tier: a folder of chunk files with a row for each, under a byte budget and quotas."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from legokv.chunks.chunk import Chunk
from legokv.chunks.stats import TierCounts, TierStats
from legokv.chunks.stored_form import EncodedChunk, encode_chunk
from legokv.chunks.stored_kv import StoredKv
from legokv.chunks.tier import StoredRow
from legokv.errors import Busy, CacheUnavailable, ChunkUnreadable
from legokv.stores.local.chunk_rows import StoredChunks
from legokv.stores.local.evictions import Room
from legokv.stores.local.files import ChunkFolder

# `beside(own_bytes, limit)`: what others keep in the same cache, having given way if they may.
BytesBeside = Callable[[int, int], int]


class DiskTier:
    """A ChunkTier on disk, shared by all processes that use the folder and its registry file.

    The folder may be lost or damaged at any time: what is not whole is unreadable, never wrong.
    """

    name = "disk"
    durable = True

    def __init__(
        self, folder: ChunkFolder, stored: StoredChunks, beside: BytesBeside | None = None
    ) -> None:
        self.folder = folder
        self.stored = stored
        self._bytes_beside = beside
        self._counts = TierCounts(self.name)

    def has(self, key: str) -> bool:
        return self.folder.has(key)

    def read(self, chunk: Chunk) -> StoredKv:
        if not self.folder.has(chunk.key):
            self._counts.add("misses")
            raise ChunkUnreadable(f"chunk {chunk.key[:12]} is not on disk", "missing")
        try:
            kv = self.folder.read(chunk)
        except ChunkUnreadable as error:
            self._counts.add_failed_read(error.reason)
            raise
        self._counts.add("hits")
        self.stored.touch([chunk.key])
        return kv

    def write(self, chunk: Chunk, kv: StoredKv) -> bool:
        """Keep the KV, durably; False if quota or budget is full of what may not leave."""
        return self.write_encoded(
            chunk.key, chunk.namespace, encode_chunk(chunk.key, chunk.token_ids, kv)
        )

    def write_encoded(self, key: str, namespace: str, encoded: EncodedChunk) -> bool:
        """`write` for a chunk that is in its stored form already."""
        row = StoredRow(key, namespace, encoded.num_bytes)
        try:
            with self._disk_errors(f"chunk {key[:12]} of {row.num_bytes} bytes was not stored"):
                kept = self._store(row, encoded)
        except (CacheUnavailable, Busy):
            self._counts.add("failed_writes")
            raise
        self._counts.add("writes" if kept else "refused")
        return kept

    def open_content(self, key: str) -> BinaryIO | None:
        """The chunk's file, unchecked, open at its start; None if there is none."""
        try:
            return self.folder.path(key).open("rb")
        except FileNotFoundError:
            return None

    def remove(self, key: str) -> None:
        with self._disk_errors(f"chunk {key[:12]} was not removed"):
            self._drop([key])

    def discard(self, key: str) -> None:
        """Remove a file that is damaged, whoever leases it."""
        with self._disk_errors(f"the damaged file of chunk {key[:12]} was not removed"):
            with self.folder.writing():
                self.folder.remove(key)
                self.stored.forget([key])
            self._counts.add_evictions("damaged")

    def trim(self) -> None:
        """Evict what nobody names any more, and down to the budget if more than that is stored."""
        with self._disk_errors("the disk tier was not trimmed to its budget"):
            self._drop([])
            beside = self._beside(0)
            with self.folder.writing(), self.stored.trim(beside) as room:
                self._remove_files(room.leaving)
            self._count_evictions(room)

    def touch(self, keys: Collection[str]) -> None:
        self.stored.touch(keys)

    def lease(self, holder: str, keys: Collection[str], seconds: float) -> None:
        self.stored.lease(holder, keys, seconds)

    def release(self, holder: str) -> None:
        with self._disk_errors("a chunk whose last lease ended was not removed"):
            with self.folder.writing(), self.stored.release(holder) as free:
                self._remove_files(free)
            self._counts.add_evictions("dropped", len(free))

    def stats(self) -> TierStats:
        try:
            num_chunks, num_bytes, num_leases = self.stored.totals()
        except CacheUnavailable:
            num_chunks = num_bytes = num_leases = 0
        return self._counts.stats(
            num_chunks=num_chunks,
            num_bytes=num_bytes,
            max_bytes=self.stored.limits.budget.limit,
            num_leases=num_leases,
        )

    def _beside(self, incoming: int) -> int:
        """Bytes of the budget that others have."""
        if self._bytes_beside is None:
            return 0
        limit = self.stored.limits.budget.limit
        return self._bytes_beside(self.stored.num_bytes() + incoming, limit)

    def _store(self, row: StoredRow, encoded: EncodedChunk) -> bool:
        beside = self._beside(row.num_bytes)
        with self.folder.writing():
            with self.stored.keep(row, beside) as room:
                self._remove_files(room.leaving)
            if room.leaving:
                self._count_evictions(room)
            if not room.kept:
                return False
            try:
                self.folder.write(row.key, encoded)
            except OSError:
                self.stored.forget([row.key])
                raise
            return True

    def _drop(self, keys: Collection[str]) -> None:
        with self.folder.writing(), self.stored.drop(keys) as free:
            self._remove_files(free)
        self._counts.add_evictions("dropped", len(free))

    def _remove_files(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.folder.remove(key)

    def _count_evictions(self, room: Room) -> None:
        self._counts.add_evictions("quota", len(room.over_quota))
        self._counts.add_evictions("budget", len(room.over_budget))

    @contextmanager
    def _disk_errors(self, what: str) -> Iterator[None]:
        """Turn what the system says into one error that says what was not done, and why."""
        try:
            yield
        except OSError as error:
            raise CacheUnavailable(f"{what}: {self.folder.root}: {error.strerror}") from error

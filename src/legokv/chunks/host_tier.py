"""The host tier: chunks' KV in this process's memory, least recently used first."""

import threading
import time
from collections.abc import Callable, Collection

from legokv.chunks.budget import Budget, Candidate, victims
from legokv.chunks.chunk import Chunk
from legokv.chunks.stats import TierCounts, TierStats
from legokv.chunks.stored_kv import StoredKv
from legokv.errors import CacheUnavailable, ChunkUnreadable


class HostTier:
    """A ChunkTier in memory. A leased or pinned chunk is never evicted.

    pinned_keys: chunks that stay, asked only when some must go. pin_memory: keep the KV where a
    GPU copies from directly. A tensor given is kept as it is and must not be written to later.
    """

    name = "host"
    durable = False

    def __init__(
        self,
        budget: Budget,
        pinned_keys: Callable[[], Collection[str]] = frozenset,
        *,
        pin_memory: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._pinned_keys = pinned_keys
        self._pin_memory = pin_memory
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, StoredKv] = {}
        self._num_bytes = 0
        self._leases: dict[str, tuple[frozenset[str], float]] = {}
        self._counts = TierCounts(self.name)

    def has(self, key: str) -> bool:
        return key in self._kept

    def read(self, chunk: Chunk) -> StoredKv:
        with self._lock:
            kv = self._kept.pop(chunk.key, None)
            if kv is None:
                self._counts.add("misses")
                raise ChunkUnreadable(f"chunk {chunk.key[:12]} is not in host memory", "missing")
            self._kept[chunk.key] = kv
        self._counts.add("hits")
        return kv

    def write(self, chunk: Chunk, kv: StoredKv) -> bool:
        if self._budget.limit == 0:
            return False
        # Asked before the lock is taken: it may be a question to a database.
        full = sum(self._budget.to_free(self._num_bytes, kv.nbytes)) > 0
        pinned = frozenset(self._pinned_keys()) if full else frozenset()
        kept = self._pinned(kv) if self._pin_memory else kv
        with self._lock:
            self._forget(chunk.key)
            if not self._make_room(kept.nbytes, pinned):
                self._counts.add("refused")
                return False
            self._kept[chunk.key] = kept
            self._num_bytes += kept.nbytes
        self._counts.add("writes")
        return True

    def remove(self, key: str) -> None:
        with self._lock:
            if self._forget(key):
                self._counts.add_evictions("dropped")

    def discard(self, key: str) -> None:
        self.remove(key)

    def touch(self, keys: Collection[str]) -> None:
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept[key] = self._kept.pop(key)

    def lease(self, holder: str, keys: Collection[str], seconds: float) -> None:
        with self._lock:
            self._leases[holder] = (frozenset(keys), self._clock() + seconds)

    def release(self, holder: str) -> None:
        with self._lock:
            self._leases.pop(holder, None)

    def clear(self) -> None:
        """Let all chunks go."""
        with self._lock:
            self._counts.add_evictions("dropped", len(self._kept))
            self._kept.clear()
            self._num_bytes = 0

    def stats(self) -> TierStats:
        with self._lock:
            return self._counts.stats(
                num_chunks=len(self._kept),
                num_bytes=self._num_bytes,
                max_bytes=self._budget.limit,
                num_leases=len(self._leased()),
            )

    def _pinned(self, kv: StoredKv) -> StoredKv:
        try:
            return kv.pin_memory()
        except RuntimeError as error:  # what torch raises when the driver has no more of it
            self._counts.add("failed_writes")
            raise CacheUnavailable(f"{kv.nbytes} bytes were not pinned: {error}") from error

    def _forget(self, key: str) -> bool:
        kv = self._kept.pop(key, None)
        if kv is not None:
            self._num_bytes -= kv.nbytes
        return kv is not None

    def _make_room(self, incoming_bytes: int, pinned: frozenset[str]) -> bool:
        target, needed = self._budget.to_free(self._num_bytes, incoming_bytes)
        if incoming_bytes > self._budget.limit:
            return False
        stay = self._leased() | pinned
        leaving = victims(
            (Candidate(key, kv.nbytes) for key, kv in self._kept.items() if key not in stay),
            target,
            needed,
        )
        if leaving is None:
            return False
        for candidate in leaving:
            self._forget(candidate.key)
        self._counts.add_evictions("budget", len(leaving))
        return True

    def _leased(self) -> frozenset[str]:
        now = self._clock()
        self._leases = {who: (keys, end) for who, (keys, end) in self._leases.items() if end > now}
        return frozenset().union(*(keys for keys, _ in self._leases.values()))

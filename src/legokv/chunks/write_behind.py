"""A durable tier whose changes are made by a thread of its own, so that no caller waits for it."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from functools import partial

from legokv.chunks.chunk import Chunk
from legokv.chunks.stats import TierStats
from legokv.chunks.stored_kv import StoredKv
from legokv.chunks.tier import ChunkTier
from legokv.errors import Busy, CacheUnavailable, ChunkUnreadable, StillUnavailable

MAX_COMING_BYTES = 2**30
"""KV that waits to be written; more is left out, and compiled again when it is asked for."""
MAX_CHANGES = 10_000
"""Changes that wait; leases past it are not taken."""

log = logging.getLogger(__name__)


class WriteBehind:
    """A ChunkTier before another one. Writes, removals and leases return at once and are done in
    their order; meanwhile a chunk that is to be written is read from memory, and one that is to be
    removed is gone. `has` and `read` of others ask the tier behind, `is_coming` never does.
    """

    def __init__(self, behind: ChunkTier, max_bytes: int = MAX_COMING_BYTES) -> None:
        self._behind = behind
        self._max_bytes = max_bytes
        self._changes: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._num_begun = self._num_done = 0
        # The last change of each key that waits, by its number: KV to be written, or None.
        self._coming: dict[str, tuple[int, StoredKv | None]] = {}
        self._coming_bytes = 0
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self._behind.name

    @property
    def durable(self) -> bool:
        return self._behind.durable

    def is_coming(self, key: str) -> bool:
        """Whether the chunk waits to be written; asks nobody."""
        with self._changed:
            return self._coming.get(key, (0, None))[1] is not None

    def has(self, key: str) -> bool:
        with self._changed:
            change = self._coming.get(key)
        return self._behind.has(key) if change is None else change[1] is not None

    def read(self, chunk: Chunk) -> StoredKv:
        with self._changed:
            change = self._coming.get(chunk.key)
        if change is None:
            return self._behind.read(chunk)
        if change[1] is None:
            raise ChunkUnreadable(f"chunk {chunk.key[:12]} is to be removed", "missing")
        return change[1]

    def write(self, chunk: Chunk, kv: StoredKv) -> bool:
        """Have the KV kept, unless the tier has it by then; False, and said in the log, if too much
        waits already.
        """
        with self._changed:
            too_much = self._coming_bytes and self._coming_bytes + kv.nbytes > self._max_bytes
        if too_much:
            log.warning(
                "chunk %s of %d bytes is not kept: %d bytes wait for the %s tier already",
                *(chunk.key[:12], kv.nbytes, self._coming_bytes, self.name),
            )
            return False
        self.write_surely(chunk, kv)
        return True

    def write_surely(self, chunk: Chunk, kv: StoredKv) -> None:
        """`write` whatever waits already, for one who will wait in `flush`."""
        self._begin(partial(self._write, chunk, kv), chunk.key, kv)

    def remove(self, key: str) -> None:
        self._begin(partial(self._behind.remove, key), key)

    def discard(self, key: str) -> None:
        self._begin(partial(self._behind.discard, key), key)

    def touch(self, keys: Collection[str]) -> None:
        self._behind.touch(keys)

    def lease(self, holder: str, keys: Collection[str], seconds: float) -> None:
        if len(self._changes) < MAX_CHANGES:
            self._begin(partial(self._behind.lease, holder, tuple(keys), seconds))

    def release(self, holder: str) -> None:
        self._begin(partial(self._behind.release, holder))

    def stats(self) -> TierStats:
        return self._behind.stats()

    def flush(self, seconds: float | None = None) -> bool:
        """Return when all is done that was begun before, or after `seconds`: whether it is."""
        with self._changed:
            last = self._num_begun
            return self._changed.wait_for(lambda: self._num_done >= last, seconds)

    def _write(self, chunk: Chunk, kv: StoredKv) -> None:
        if not self._behind.has(chunk.key):
            self._behind.write(chunk, kv)

    def _begin(
        self, change: Callable[[], object], key: str | None = None, kv: StoredKv | None = None
    ) -> None:
        with self._changed:
            self._num_begun += 1
            if key is not None:
                self._forget(key)
                self._coming[key] = self._num_begun, kv
                self._coming_bytes += 0 if kv is None else kv.nbytes
            self._changes.append(partial(self._make, change, key, self._num_begun))
            if self._thread is None:
                name = f"{self.name} writer"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._changes)
                make = self._changes.popleft()
            make()
            with self._changed:
                self._num_done += 1
                self._changed.notify_all()

    def _make(self, change: Callable[[], object], key: str | None, number: int) -> None:
        try:
            change()
        except (CacheUnavailable, Busy) as error:
            level = logging.DEBUG if isinstance(error, StillUnavailable) else logging.WARNING
            log.log(level, "going on without the %s tier: %s", self.name, error)
        except Exception:
            # The thread's boundary: the next change is not this one's.
            log.exception("the %s tier was not changed", self.name)
        with self._changed:
            if key is not None and self._coming.get(key, (0, None))[0] == number:
                self._forget(key)

    def _forget(self, key: str) -> None:
        kv = self._coming.pop(key, (0, None))[1]
        self._coming_bytes -= 0 if kv is None else kv.nbytes

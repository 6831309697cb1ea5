"""Chunks whose documents were deleted: who still computes them must not store them again."""

import threading
import time
from collections.abc import Callable

DROPPED_SECONDS = 3600.0
MAX_DROPPED_KEYS = 1 << 16


class DroppedKeys:
    """Keys that were dropped within the last hour, at most 65,536 of them, the oldest gone first.

    A question looks its documents up before they are deleted, and may compile their chunks after.
    Safe to use from several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # In the order of their ends.
        self._ends: dict[str, float] = {}
        self._changing = threading.Lock()

    def __contains__(self, key: str) -> bool:
        end = self._ends.get(key)
        return end is not None and self._clock() < end

    def add(self, key: str) -> None:
        """The chunk was dropped now."""
        with self._changing:
            self._ends.pop(key, None)
            self._ends[key] = self._clock() + DROPPED_SECONDS
            while len(self._ends) > MAX_DROPPED_KEYS or self._oldest_end() <= self._clock():
                del self._ends[next(iter(self._ends))]

    def discard(self, key: str) -> None:
        """Somebody wants the chunk stored, again."""
        with self._changing:
            self._ends.pop(key, None)

    def _oldest_end(self) -> float:
        return next(iter(self._ends.values()))

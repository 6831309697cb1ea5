"""What a tier holds and what happened in it, counted right among several threads. No KV, no I/O."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from legokv.errors import UnreadableReason

CountName = Literal["hits", "misses", "writes", "refused", "failed_writes"]
EvictionReason = Literal["budget", "quota", "dropped", "damaged"]


def _none() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True)
class TierStats:
    """One tier's state and its counts since the start. Counts only grow.

    `refused` chunks were not kept because leased or pinned ones fill the budget. `failed_reads` are
    by a ChunkUnreadable's reason; a chunk that is not there is a miss. `evictions` are by reason:
    "budget", "quota" (of a namespace), "dropped" (nobody names the chunk any more), "damaged".
    Reasons that never happened are not in them.
    """

    tier: str
    num_chunks: int = 0
    num_bytes: int = 0
    max_bytes: int = 0
    num_leases: int = 0
    hits: int = 0
    misses: int = 0
    writes: int = 0
    refused: int = 0
    failed_writes: int = 0
    failed_reads: Mapping[str, int] = field(default_factory=_none)
    evictions: Mapping[str, int] = field(default_factory=_none)


class TierCounts:
    """Counts by the names of TierStats' fields; failed reads and evictions by reason."""

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._lock = threading.Lock()
        self._counts: Counter[CountName] = Counter()
        self._failed_reads: Counter[str] = Counter()
        self._evictions: Counter[str] = Counter()

    def add(self, name: CountName, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def add_failed_read(self, reason: UnreadableReason) -> None:
        with self._lock:
            self._failed_reads[reason] += 1

    def add_evictions(self, reason: EvictionReason, number: int = 1) -> None:
        if number:
            with self._lock:
                self._evictions[reason] += number

    def stats(
        self, *, num_chunks: int = 0, num_bytes: int = 0, max_bytes: int = 0, num_leases: int = 0
    ) -> TierStats:
        """The counts with the tier's state beside them."""
        with self._lock:
            return TierStats(
                tier=self._tier,
                num_chunks=num_chunks,
                num_bytes=num_bytes,
                max_bytes=max_bytes,
                num_leases=num_leases,
                hits=self._counts["hits"],
                misses=self._counts["misses"],
                writes=self._counts["writes"],
                refused=self._counts["refused"],
                failed_writes=self._counts["failed_writes"],
                failed_reads=MappingProxyType(dict(self._failed_reads)),
                evictions=MappingProxyType(dict(self._evictions)),
            )

"""What a tier holds and what happened in it, counted right among several threads. No KV, no I/O."""

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TierStats:
    """One tier's state and its counts since the start. Counts only grow.

    `refused` chunks were not kept because leased or pinned ones fill the budget. `evictions` are
    by reason: "budget", "quota" (of a namespace), "dropped" (nobody names the chunk any more),
    "damaged".
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
    failed_reads: int = 0
    failed_writes: int = 0
    evictions: dict[str, int] = field(default_factory=dict)


class TierCounts:
    """Counts by the names of TierStats' fields; evictions by reason."""

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._evictions: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        """Count one of hits, misses, writes, refused, failed_reads, failed_writes."""
        with self._lock:
            self._counts[name] += number

    def add_evictions(self, reason: str, number: int = 1) -> None:
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
                evictions=dict(self._evictions),
                **self._counts,
            )

"""What every tier below the pool offers: chunks' KV kept by key, that may be lost at any time."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Protocol

from legokv.chunks.chunk import Chunk
from legokv.chunks.stats import TierStats
from legokv.chunks.stored_kv import StoredKv

MAX_LEASE_SECONDS = 3600.0
"""A lease ends after this long, whoever holds it."""


@dataclass(frozen=True)
class StoredRow:
    """One stored chunk as its store lists it; `num_bytes` is what it takes there."""

    key: str
    namespace: str
    num_bytes: int
    dropped: bool = False


@dataclass(frozen=True)
class Repair:
    """What was found wrong and mended. `removed_bytes` are those of all files removed."""

    temporary_files: int = 0
    rows_without_file: int = 0
    files_without_row: int = 0
    files_adopted: int = 0
    files_of_wrong_size: int = 0
    damaged_files: int = 0
    checked_files: int = 0
    removed_bytes: int = 0

    def __add__(self, other: "Repair") -> "Repair":
        names = [item.name for item in fields(Repair)]
        return Repair(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def num_found(self) -> int:
        """How many things were wrong."""
        sound = ("checked_files", "removed_bytes")
        return sum(getattr(self, f.name) for f in fields(Repair) if f.name not in sound)


class ChunkTier(Protocol):
    """Keeps chunks' KV by key under a byte budget. Safe to use from several threads.

    Every method but `stats` may raise CacheUnavailable or Busy when the tier cannot be reached or
    written just now; the message says why. The caller goes on without the tier.
    """

    @property
    def name(self) -> str:
        """ "host", "disk" or "remote"."""

    @property
    def durable(self) -> bool:
        """Whether it outlives the process; such a tier is given persistent chunks only."""

    def has(self, key: str) -> bool:
        """Whether a read would probably succeed; costs next to nothing."""

    def read(self, chunk: Chunk) -> StoredKv:
        """The chunk's KV as it was written, on the CPU; ChunkUnreadable unless it is whole."""

    def write(self, chunk: Chunk, kv: StoredKv) -> bool:
        """Keep the KV, evicting others where the budget asks for it; False if there is no room."""

    def remove(self, key: str) -> None:
        """Let the chunk go, at once or when its last lease ends."""

    def discard(self, key: str) -> None:
        """Remove a copy that was found damaged, whoever leases it."""

    def touch(self, keys: Collection[str]) -> None:
        """Note that these chunks were used just now, wherever they were found."""

    def lease(self, holder: str, keys: Collection[str], seconds: float) -> None:
        """Keep these chunks from eviction until `release(holder)`, for `seconds` at most."""

    def release(self, holder: str) -> None:
        """End all leases of this holder; one without any is passed over."""

    def stats(self) -> TierStats:
        """The tier's state; what cannot be asked now is 0."""

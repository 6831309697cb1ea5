"""What every tier below the pool offers: chunks' KV kept by key, that may be lost at any time."""

from collections.abc import Collection
from typing import Protocol

from legokv.chunks.chunk import Chunk
from legokv.chunks.stats import TierStats
from legokv.chunks.stored_kv import StoredKv


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

"""Other models' chunks in the same cache folder: the disk's budget is of all of them together."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from legokv.chunks.budget import Budget
from legokv.errors import LegokvError
from legokv.stores.local.chunk_rows import StoredChunks
from legokv.stores.local.database import Database
from legokv.stores.local.evictions import DiskLimits
from legokv.stores.local.files import ChunkFolder
from legokv.stores.local.models import is_model
from legokv.stores.local.registry import Registry
from legokv.stores.local.tier import DiskTier
from legokv.whole_files import PRIVATE_FILE

COUNT_SECONDS = 10.0
"""What others have is counted anew after that long."""

_MARK_SUFFIX = ".used"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Neighbour:
    """Another model's registry file, and its chunks' folder."""

    database: Database
    folder: ChunkFolder

    @property
    def num_bytes(self) -> int:
        with self.database.snapshot() as sql:
            row = sql.execute("SELECT coalesce(sum(num_bytes), 0) FROM stored_chunks").fetchone()
            return int(row[0])

    def shrink(self, limit: int) -> None:
        """Let chunks go down to so many bytes, the least recently used first, as far as may be."""
        pinned = Registry(self.database).pinned_chunk_keys
        limits = DiskLimits(Budget(limit, low=1.0))
        DiskTier(self.folder, StoredChunks(self.database, limits, pinned)).trim()


class Neighbours:
    """Models that have a registry called as `registry` is, in folders beside its own."""

    def __init__(self, registry: Path, chunks: str) -> None:
        self._registry, self._chunks = registry, chunks
        self._unreadable: set[Path] = set()
        self._num_bytes, self._counted_at = 0, -COUNT_SECONDS

    def bytes_beside(self, own_bytes: int, limit: int) -> int:
        """What others have when those used longest ago have given way, so that all are within the
        limit, as far as they may: leased and pinned chunks stay.
        """
        # The registry's own time is no such mark: who makes others give way changes it.
        self._registry.with_name(f"{self._registry.name}{_MARK_SUFFIX}").touch(PRIVATE_FILE)
        now = time.monotonic()
        is_old = now - self._counted_at >= COUNT_SECONDS
        if is_old or (self._num_bytes and own_bytes + self._num_bytes > limit):
            with self._opened() as neighbours:
                self._num_bytes = _shrunk(neighbours, limit - own_bytes)
            self._counted_at = now
        return self._num_bytes

    @contextmanager
    def _opened(self) -> Iterator[list[_Neighbour]]:
        """All that can be opened, those that wrote longest ago first.

        Opened anew each time: a model's folder may be removed while this server lives.
        """
        files = self._registry.parent.parent.glob(f"*/{self._registry.name}")
        others = [file for file in files if is_model(file.parent) and file != self._registry]
        with ExitStack() as databases:
            neighbours = []
            for file in sorted(others, key=_used_at):
                database = self._database(file)
                if database is not None:
                    databases.enter_context(closing(database))
                    folder = ChunkFolder(file.with_name(self._chunks))
                    neighbours.append(_Neighbour(database, folder))
            yield neighbours

    def _database(self, file: Path) -> Database | None:
        try:
            return Database.open(file)
        except LegokvError as error:
            if file not in self._unreadable:
                log.warning("KV of another model is not counted: %s", error)
            self._unreadable.add(file)
            return None


def _shrunk(neighbours: list[_Neighbour], limit: int) -> int:
    """Bytes of all of them, when the first have given way so that it is `limit` if that may be."""
    surplus = sum(neighbour.num_bytes for neighbour in neighbours) - limit
    for neighbour in neighbours:
        num_bytes = neighbour.num_bytes
        if surplus > 0 and num_bytes:
            neighbour.shrink(max(0, num_bytes - surplus))
            freed = num_bytes - neighbour.num_bytes
            surplus -= freed
            log.info("%s gave up %d bytes of KV", neighbour.folder.root.parent, freed)
    return limit + surplus


def _used_at(registry: Path) -> float:
    """When the model wrote last, by its own mark; 0 for one of an older version."""
    mark = registry.with_name(f"{registry.name}{_MARK_SUFFIX}")
    return mark.stat().st_mtime if mark.exists() else 0.0

"""The rows about a machine's stored chunks: sizes, order of use, leases. SQL only, no files.

Where a file has to go with its row, a method gives the keys to a `with` block that removes the
files; the rows go when the block is left. A process killed in between leaves a row without a file,
which is harmless, and mended at the next start.
"""

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from legokv.chunks.tier import StoredRow
from legokv.stores.local.database import Database, damaged_row
from legokv.stores.local.evictions import (
    LEASED_KEYS,
    DiskLimits,
    Room,
    count_leases,
    end_overdue_leases,
    release_leases,
    room_for,
    surplus,
    take_leases,
)


class StoredChunks:
    """Rows of one model's chunk files, for all processes that share the folder.

    pinned_keys: chunks that are not evicted.
    """

    def __init__(
        self,
        database: Database,
        limits: DiskLimits,
        pinned_keys: Callable[[], Collection[str]],
    ) -> None:
        self.limits = limits
        self._database = database
        self._pinned_keys = pinned_keys
        self._used: dict[str, None] = {}
        self._used_lock = threading.Lock()

    @contextmanager
    def keep(self, row: StoredRow, beside: int = 0) -> Iterator[Room]:
        """Note a chunk that is about to be stored, if there is room; the block removes others.

        beside: bytes of the budget that others than these rows have.
        """
        limits = self.limits.beside(beside)
        with self._database.transaction() as sql:
            room = self._room(sql, row, limits, ())
            if not room.leaving:  # so it does not matter who has to stay
                yield room
                self._note(sql, row, room)
                return
        stay = self._pinned_keys()  # before the transaction: it may ask the same database
        with self._database.transaction() as sql:
            room = self._room(sql, row, limits, stay)
            yield room
            self._note(sql, row, room)

    @contextmanager
    def trim(self, beside: int = 0) -> Iterator[Room]:
        """Who leaves because the budget became smaller, or others have so much of it."""
        stay = self._pinned_keys()
        with self._database.transaction(frees_room=True) as sql:
            end_overdue_leases(sql, self._database.now())
            room = surplus(sql, self.limits.beside(beside).budget, stay)
            yield room
            _delete(sql, room.leaving)

    @contextmanager
    def drop(self, keys: Collection[str]) -> Iterator[tuple[str, ...]]:
        """Mark the chunks as unwanted, and give those unwanted ones that nobody leases."""
        with self._database.transaction(frees_room=True) as sql:
            sql.executemany("UPDATE stored_chunks SET dropped = 1 WHERE key = ?", _ones(keys))
            with self._ended(sql) as free:
                yield free

    def lease(self, holder: str, keys: Collection[str], seconds: float) -> None:
        """Keep the chunks from eviction and removal until released, for `seconds` at most."""
        with self._database.transaction() as sql:
            self._flush_uses(sql)
            take_leases(sql, holder, keys, self._database.now(), seconds)

    @contextmanager
    def release(self, holder: str) -> Iterator[tuple[str, ...]]:
        """End the holder's leases, and give the unwanted chunks that nobody leases now."""
        with self._database.transaction(frees_room=True) as sql:
            release_leases(sql, holder)
            with self._ended(sql) as free:
                yield free

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the rows, whoever leases them: their files are gone."""
        with self._database.transaction(frees_room=True) as sql:
            _delete(sql, keys)

    def adopt(self, rows: Iterable[StoredRow]) -> None:
        """Note files that are there already, as just used."""
        with self._database.transaction() as sql:
            for row in rows:
                _upsert(sql, row)

    def touch(self, keys: Iterable[str]) -> None:
        """Note a use; written with the next transaction that asks for the order."""
        with self._used_lock:
            for key in keys:
                self._used.pop(key, None)
                self._used[key] = None

    def rows(self) -> tuple[StoredRow, ...]:
        """All rows, least recently used first."""
        with self._database.snapshot() as sql:
            cursor = sql.execute(
                "SELECT key, namespace, num_bytes, dropped FROM stored_chunks ORDER BY used"
            )
            return tuple(_stored_row(*row) for row in cursor)

    def totals(self) -> tuple[int, int, int]:
        """How many chunks are stored, their bytes, and how many of them are leased."""
        with self._database.snapshot() as sql:
            number, num_bytes = sql.execute(
                "SELECT count(*), coalesce(sum(num_bytes), 0) FROM stored_chunks"
            ).fetchone()
            return int(number), int(num_bytes), count_leases(sql, self._database.now())

    def num_bytes(self) -> int:
        """Bytes of all chunks that are stored."""
        with self._database.snapshot() as sql:
            row = sql.execute("SELECT coalesce(sum(num_bytes), 0) FROM stored_chunks").fetchone()
            return int(row[0])

    def _room(
        self, sql: sqlite3.Connection, row: StoredRow, limits: DiskLimits, stay: Collection[str]
    ) -> Room:
        self._flush_uses(sql)
        end_overdue_leases(sql, self._database.now())
        return room_for(sql, row, limits, stay)

    def _note(self, sql: sqlite3.Connection, row: StoredRow, room: Room) -> None:
        _delete(sql, room.leaving)
        if room.kept:
            _upsert(sql, row)

    @contextmanager
    def _ended(self, sql: sqlite3.Connection) -> Iterator[tuple[str, ...]]:
        end_overdue_leases(sql, self._database.now())
        rows = sql.execute(
            f"SELECT key FROM stored_chunks WHERE dropped AND key NOT IN ({LEASED_KEYS})"
        )
        free = tuple(key for (key,) in rows)
        yield free
        _delete(sql, free)

    def _flush_uses(self, sql: sqlite3.Connection) -> None:
        with self._used_lock:
            used, self._used = self._used, {}
        sql.executemany(
            "UPDATE stored_chunks SET used = (SELECT max(used) + 1 FROM stored_chunks)"
            " WHERE key = ?",
            _ones(used),
        )


def _stored_row(key: object, namespace: object, num_bytes: object, dropped: object) -> StoredRow:
    """CacheUnavailable for a value that is none."""
    if not isinstance(key, str):
        raise damaged_row("stored_chunks", "key", key)
    if not isinstance(namespace, str):
        raise damaged_row("stored_chunks", "namespace", namespace)
    if not isinstance(num_bytes, int):
        raise damaged_row("stored_chunks", "num_bytes", num_bytes)
    return StoredRow(key, namespace, num_bytes, bool(dropped))


def _upsert(sql: sqlite3.Connection, row: StoredRow) -> None:
    sql.execute(
        "INSERT OR REPLACE INTO stored_chunks (key, namespace, num_bytes, used) VALUES"
        " (?, ?, ?, (SELECT coalesce(max(used), 0) + 1 FROM stored_chunks))",
        (row.key, row.namespace, row.num_bytes),
    )


def _delete(sql: sqlite3.Connection, keys: Iterable[str]) -> None:
    sql.executemany("DELETE FROM stored_chunks WHERE key = ?", _ones(keys))


def _ones(keys: Iterable[str]) -> list[tuple[str]]:
    return [(key,) for key in keys]

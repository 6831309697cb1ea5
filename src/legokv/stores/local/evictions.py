"""Who leaves the disk for a new chunk: budget and quota applied to the rows. No files."""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

from legokv.chunks.budget import Budget, Candidate, victims
from legokv.chunks.tier import MAX_LEASE_SECONDS, StoredRow
from legokv.stores.local.database import damaged_row

LEASED_KEYS = "SELECT key FROM leases"


def take_leases(
    sql: sqlite3.Connection, holder: str, keys: Collection[str], now: float, seconds: float
) -> None:
    """Lease the keys to the holder, for MAX_LEASE_SECONDS at most."""
    deadline = now + min(seconds, MAX_LEASE_SECONDS)
    sql.executemany(
        "INSERT OR REPLACE INTO leases (key, holder, deadline) VALUES (?, ?, ?)",
        [(key, holder, deadline) for key in keys],
    )


def release_leases(sql: sqlite3.Connection, holder: str) -> None:
    """End all leases of the holder."""
    sql.execute("DELETE FROM leases WHERE holder = ?", (holder,))


def end_overdue_leases(sql: sqlite3.Connection, now: float) -> None:
    """End the leases past their deadline, and those from before the clock was set back.

    A deadline further off than the longest lease was not written by today's clock.
    """
    sql.execute(
        "DELETE FROM leases WHERE deadline <= ? OR deadline > ?", (now, now + MAX_LEASE_SECONDS)
    )


def count_leases(sql: sqlite3.Connection, now: float) -> int:
    """How many chunks somebody leases now."""
    (number,) = sql.execute(
        "SELECT count(DISTINCT key) FROM leases WHERE deadline > ? AND deadline <= ?",
        (now, now + MAX_LEASE_SECONDS),
    ).fetchone()
    return int(number)


@dataclass(frozen=True)
class DiskLimits:
    """The budget of all chunks together, and the quota of each namespace, None for no limit."""

    budget: Budget
    quota: Budget | None = None

    def beside(self, num_bytes: int) -> "DiskLimits":
        """What is left where others have so much of the budget."""
        left = max(0, self.budget.limit - num_bytes)
        return replace(self, budget=replace(self.budget, limit=left))


@dataclass(frozen=True)
class Room:
    """Who leaves so that a chunk can be kept; `kept` false: it can't, and nobody leaves."""

    kept: bool
    over_quota: tuple[Candidate, ...] = ()
    over_budget: tuple[Candidate, ...] = ()

    @cached_property
    def leaving(self) -> tuple[str, ...]:
        return tuple(candidate.key for candidate in (*self.over_quota, *self.over_budget))


def room_for(
    sql: sqlite3.Connection, row: StoredRow, limits: DiskLimits, stay: Collection[str]
) -> Room:
    """Who leaves for `row`: of its own namespace if that is over its quota, then of all.

    Chunks that nobody names any more go first, then the least recently used; those that are
    leased, or in `stay`, do not go. Ends leases that are over first.
    """
    quota = limits.quota
    if row.num_bytes > limits.budget.limit or (quota and row.num_bytes > quota.limit):
        return Room(False)
    over_quota = () if quota is None else _over_quota(sql, row, quota, stay)
    if over_quota is None:
        return Room(False)
    over_budget = _over_budget(sql, row, limits.budget, stay, over_quota)
    return Room(False) if over_budget is None else Room(True, over_quota, over_budget)


def surplus(sql: sqlite3.Connection, budget: Budget, stay: Collection[str]) -> Room:
    """Who leaves because the budget is smaller than what is stored; as many as may."""
    nobody = StoredRow("", "", 0)
    target, _ = budget.to_free(_used(sql, nobody, None), 0)
    candidates = _evictable(sql, nobody, stay, None) if target else ()
    return Room(True, (), victims(candidates, target, 0) or ())


def _over_quota(
    sql: sqlite3.Connection, row: StoredRow, quota: Budget, stay: Collection[str]
) -> tuple[Candidate, ...] | None:
    target, needed = quota.to_free(_used(sql, row, row.namespace), row.num_bytes)
    own = _evictable(sql, row, stay, row.namespace) if target else ()
    return victims(own, target, needed)


def _over_budget(
    sql: sqlite3.Connection,
    row: StoredRow,
    budget: Budget,
    stay: Collection[str],
    gone: tuple[Candidate, ...],
) -> tuple[Candidate, ...] | None:
    used = _used(sql, row, None) - sum(candidate.size for candidate in gone)
    target, needed = budget.to_free(used, row.num_bytes)
    candidates = _evictable(sql, row, stay, None) if target else ()
    return victims((c for c in candidates if c not in gone), target, needed)


def _used(sql: sqlite3.Connection, row: StoredRow, namespace: str | None) -> int:
    (used,) = sql.execute(
        "SELECT coalesce(sum(num_bytes), 0) FROM stored_chunks"
        " WHERE key != ? AND namespace = coalesce(?, namespace)",
        (row.key, namespace),
    ).fetchone()
    return int(used)


def _evictable(
    sql: sqlite3.Connection, row: StoredRow, stay: Collection[str], namespace: str | None
) -> tuple[Candidate, ...]:
    cursor = sql.execute(
        "SELECT key, num_bytes FROM stored_chunks"
        " WHERE key != ? AND namespace = coalesce(?, namespace)"
        f" AND key NOT IN ({LEASED_KEYS}) ORDER BY dropped DESC, used",
        (row.key, namespace),
    )
    return tuple(_candidate(*row) for row in cursor if row["key"] not in stay)


def _candidate(key: object, num_bytes: object) -> Candidate:
    """CacheUnavailable for a value that is none."""
    if not isinstance(key, str):
        raise damaged_row("stored_chunks", "key", key)
    if not isinstance(num_bytes, int):
        raise damaged_row("stored_chunks", "num_bytes", num_bytes)
    return Candidate(key, num_bytes)

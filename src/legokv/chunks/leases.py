"""Rows that say which process reads which stored chunk, until when. SQL only."""

import sqlite3
from collections.abc import Collection

MAX_LEASE_SECONDS = 3600.0

LEASED_KEYS = "SELECT key FROM leases"


def take(
    sql: sqlite3.Connection, holder: str, keys: Collection[str], now: float, seconds: float
) -> None:
    """Lease the keys to the holder, for MAX_LEASE_SECONDS at most."""
    deadline = now + min(seconds, MAX_LEASE_SECONDS)
    sql.executemany(
        "INSERT OR REPLACE INTO leases (key, holder, deadline) VALUES (?, ?, ?)",
        [(key, holder, deadline) for key in keys],
    )


def release(sql: sqlite3.Connection, holder: str) -> None:
    """End all leases of the holder."""
    sql.execute("DELETE FROM leases WHERE holder = ?", (holder,))


def end_overdue(sql: sqlite3.Connection, now: float) -> None:
    """End the leases past their deadline, and those from before the clock was set back.

    A deadline further off than the longest lease was not written by today's clock.
    """
    sql.execute(
        "DELETE FROM leases WHERE deadline <= ? OR deadline > ?", (now, now + MAX_LEASE_SECONDS)
    )


def count(sql: sqlite3.Connection, now: float) -> int:
    """How many chunks somebody leases now."""
    (number,) = sql.execute(
        "SELECT count(DISTINCT key) FROM leases WHERE deadline > ? AND deadline <= ?",
        (now, now + MAX_LEASE_SECONDS),
    ).fetchone()
    return int(number)

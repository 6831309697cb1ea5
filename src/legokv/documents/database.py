"""The registry's SQLite file: its schema, its version, and transactions several processes share."""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from legokv.errors import Busy, EngineMismatch

SCHEMA_VERSION = 1

BUSY_SECONDS = 10.0

_SCHEMA = """
CREATE TABLE documents (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of registration, never used again
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT,
    text TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    num_tokens INTEGER NOT NULL,
    state TEXT NOT NULL,
    failure TEXT,
    pinned INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    expires_at REAL,
    last_used_at REAL,
    claim TEXT,            -- who compiles it, while its state is compiling
    claim_deadline REAL,   -- until when that one is believed to be alive
    UNIQUE (namespace, id)
);
CREATE TABLE chunks (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    token_ids BLOB NOT NULL,  -- little-endian int32
    key TEXT,                 -- of its KV, once it has been compiled
    PRIMARY KEY (document, position)
);
CREATE INDEX documents_by_expiry ON documents (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX chunks_by_key ON chunks (key);
"""


class Database:
    """One process's connection to the registry file; safe to use from several threads.

    `clock` gives Unix seconds, the same in all processes that share the file.
    """

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.now = clock

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float] = time.time) -> "Database":
        """Open `path`, made if missing; EngineMismatch if it is another version's or damaged."""
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            # Going over to WAL does not wait for other processes; a lock beside the file does.
            with open(path.with_name(path.name + ".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _prepare(connection, path)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise EngineMismatch(
                f"{path} cannot be used as a document registry: {error}"
            ) from error
        except EngineMismatch:
            connection.close()
            raise
        return cls(connection, clock)

    def close(self) -> None:
        """Close the file; further use is an error."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All statements of the `with` block or none, alone among all processes' writers.

        Busy if other processes keep the file locked for BUSY_SECONDS.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                raise Busy(f"the document registry was locked for {BUSY_SECONDS:g} s") from error
            with self._connection:  # commits, or rolls back on an exception
                yield self._connection

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Reads that see one state of the file; waits for no other process's writer."""
        with self._lock:
            self._connection.execute("BEGIN")
            with self._connection:
                yield self._connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == 0 and num_tables == 0:
        connection.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
    elif version != SCHEMA_VERSION:
        raise EngineMismatch(
            f"{path} has registry version {version}, this program uses version {SCHEMA_VERSION}; "
            "move the file away to start an empty registry"
        )

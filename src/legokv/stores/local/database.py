"""The registry's SQLite file: opened at this version, with transactions several processes share."""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from legokv.errors import Busy, CacheUnavailable, EngineMismatch, LegokvError
from legokv.stores.local.reserve import Reserve
from legokv.whole_files import PRIVATE_FILE, make_private_folder, private_opener

SCHEMA_VERSION = 3

DOCUMENTS = """
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

STORED_CHUNKS = """
CREATE TABLE stored_chunks (
    key TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,          -- of its file
    used INTEGER NOT NULL,               -- a later use has a larger number; no clock is asked
    dropped INTEGER NOT NULL DEFAULT 0   -- goes when its last lease ends
) WITHOUT ROWID;
CREATE INDEX stored_chunks_by_use ON stored_chunks (used);
CREATE INDEX stored_chunks_by_namespace ON stored_chunks (namespace, used);
CREATE TABLE leases (
    key TEXT NOT NULL,
    holder TEXT NOT NULL,
    deadline REAL NOT NULL,
    PRIMARY KEY (key, holder)
) WITHOUT ROWID;
CREATE INDEX leases_by_holder ON leases (holder);
"""

# What `expires_at` was set by, so that one from before the clock was set back is known.
TIME_TO_LIVE = "ALTER TABLE documents ADD COLUMN ttl_seconds REAL;"

# Token ids that a document is compiled behind; none of one from before there were heads. Of no
# version: older programs read the file as before.
HEAD = "ALTER TABLE documents ADD COLUMN head BLOB"

# Of no version: older programs read the file as before.
INDEXES = {
    # Pins are asked for twice a second.
    "pinned": "documents (number, expires_at) WHERE pinned = 1",
    # Else a page would sort its whole namespace, with the texts.
    "documents_by_namespace": "documents (namespace, number)",
}

# What brings a file of each version to the next one; version 0 is an empty file.
STEPS = {0: DOCUMENTS, 1: STORED_CHUNKS, 2: TIME_TO_LIVE}


BUSY_SECONDS = 10.0
_MAX_IDLE_READERS = 8
# Of 4 KiB: what waits to go into the file must have room there when the disk is full.
_LOG_PAGES = 256
USERS_SUFFIX = ".users"
"""Beside a registry's file: locked by each process that has the registry open."""

# What SQLite says when the file cannot be reached or written now; anything else is our mistake.
_UNAVAILABLE = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_IOERR: "reading or writing it failed",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_PERM: "permission is denied",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOTADB: "it is no database any more",
}


_NO_TEXT = "Could not decode to UTF-8"


class Database:
    """One process's connections to the registry file; safe to use from several threads.

    One connection writes. Each thread that reads has another for the while, so that no reader
    waits for a writer, of this process or another. `clock` gives Unix seconds, the same in all
    processes that share the file.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._path = path
        self._user = _user_of(path)
        self._reserve = Reserve(path.with_name(f"{path.name}.reserve"))
        self._reserve.take()
        self._connection = writer
        self._lock = threading.Lock()
        self._idle_readers: list[sqlite3.Connection] = []
        self._closed = False
        self.now = clock

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float] = time.time) -> "Database":
        """Open `path`, made if missing; EngineMismatch if it is another version's or damaged.

        CacheUnavailable if the folder cannot be written.
        """
        try:
            make_private_folder(path.parent)
            # Going over to WAL does not wait for other processes; a lock beside the file does.
            with open(path.with_name(path.name + ".lock"), "w", opener=private_opener) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _make_private(path)
                return cls(path, _connect(path), clock)
        except OSError as error:
            raise CacheUnavailable(
                f"the document registry {path} cannot be opened: {error.strerror}; choose another "
                "cache folder or make this one writable"
            ) from error

    def close(self) -> None:
        """Close the file; further use is an error."""
        self._closed = True
        with self._lock:
            self._connection.close()
        while self._idle_readers:
            self._idle_readers.pop().close()
        self._user.close()

    @contextmanager
    def transaction(
        self, *, frees_room: bool = False, seconds: float = BUSY_SECONDS
    ) -> Iterator[sqlite3.Connection]:
        """All statements of the `with` block or none, alone among all processes' writers.

        Busy if others keep the file locked for so many seconds, each; CacheUnavailable, and
        nothing done, if the file cannot be written. frees_room: it may use the room kept back.
        """
        with self._alone(seconds), _sqlite_errors():
            if frees_room and self._reserve.give():
                # Else each deletion would add to the log beside the file, which has no room.
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:  # commits, or rolls back on an exception
                yield self._connection
        if frees_room:
            self._reserve.take()

    @contextmanager
    def _alone(self, seconds: float) -> Iterator[None]:
        """Alone among this process's writers; one who can wait for others waits for these too."""
        if not self._lock.acquire(timeout=-1 if seconds == BUSY_SECONDS else seconds):
            raise _busy(seconds)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Reads that see one state of the file, and wait for nobody who writes."""
        with _sqlite_errors():
            reader = self._reader()
            try:
                reader.execute("BEGIN")
                with reader:
                    yield reader
            finally:
                self._give_back(reader)

    def _reader(self) -> sqlite3.Connection:
        """A connection nobody else reads with now."""
        if self._closed:
            raise sqlite3.ProgrammingError("the document registry is closed")
        try:
            return self._idle_readers.pop()
        except IndexError:
            reader = _opened(self._path)
            reader.execute("PRAGMA query_only = ON")
            return reader

    def _give_back(self, reader: sqlite3.Connection) -> None:
        if self._closed or len(self._idle_readers) >= _MAX_IDLE_READERS:
            reader.close()
        else:
            self._idle_readers.append(reader)


def _busy(seconds: float) -> Busy:
    return Busy(f"the document registry was locked for {seconds:g} s")


def damaged_row(table: str, column: str, value: object) -> CacheUnavailable:
    """The error for a value that no legokv writes: SQLite takes any type in any column."""
    return CacheUnavailable(
        f"the document registry is damaged: a row of its table {table} has the {column} "
        f"{repr(value)[:80]}; delete the document, or move the registry's file away"
    )


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    """Turn what SQLite says of its file into this project's errors."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            raise _busy(BUSY_SECONDS) from error
        if _NO_TEXT in str(error):  # of Python's module, which has no code for it
            code = sqlite3.SQLITE_CORRUPT
        if code in _UNAVAILABLE:
            raise CacheUnavailable(
                f"the document registry cannot be used now: {_UNAVAILABLE[code]} ({error})"
            ) from error
        raise


def _make_private(path: Path) -> None:
    """Make the file if there is none, its owner's alone; SQLite makes others beside it like it.

    One that is there is never opened but by SQLite: to close it would end the locks that this
    process's other connections have on it.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE_FILE))


def _user_of(path: Path) -> IO[str]:
    """A file by which others see that a process has the registry open, until it is closed."""
    file = open(path.with_name(path.name + USERS_SUFFIX), "a", opener=private_opener)  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = _opened(path)
    try:
        with _sqlite_errors():
            _prepare(connection, path)
    except CacheUnavailable as error:
        connection.close()
        if _is_damaged(error):
            raise _damaged(path, str(error.__cause__)) from error
        raise
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damaged(path, str(error)) from error
    except LegokvError:
        connection.close()
        raise
    return connection


def _damaged(path: Path, what: str) -> EngineMismatch:
    return EngineMismatch(
        f"{path} cannot be used as a document registry: {what}; move the file away to start an "
        "empty one"
    )


def _is_damaged(error: CacheUnavailable) -> bool:
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not 0 <= version <= SCHEMA_VERSION or (version == 0 and num_tables):
        raise EngineMismatch(
            f"{path} has registry version {version}, this program uses version {SCHEMA_VERSION}; "
            "move the file away to start an empty registry"
        )
    steps = "".join(STEPS[old] for old in range(version, SCHEMA_VERSION))
    if steps:
        connection.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    _check_columns(connection, path)
    if "head" not in [row["name"] for row in connection.execute("PRAGMA table_info(documents)")]:
        connection.execute(HEAD)
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for name, what in INDEXES.items():
        if name not in names:  # else one that writes would be waited for
            connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {what}")


def _check_columns(connection: sqlite3.Connection, path: Path) -> None:
    """EngineMismatch for a file that says this version and lacks a table or column of it."""
    with closing(sqlite3.connect(":memory:")) as whole:
        whole.executescript("".join(STEPS.values()))
        for (table,) in whole.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            missing = _columns(whole, table) - _columns(connection, table)
            if missing:
                raise _damaged(path, f"its table {table} lacks {', '.join(sorted(missing))}")


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """None where there is no such table."""
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}

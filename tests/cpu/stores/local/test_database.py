"""Who waits for whom at the registry's file."""

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from registries import new, register

from legokv.chunks.budget import Budget
from legokv.chunks.tier import StoredRow
from legokv.errors import CacheUnavailable, EngineMismatch
from legokv.stores.local import document_rows
from legokv.stores.local.chunk_rows import StoredChunks
from legokv.stores.local.database import BUSY_SECONDS
from legokv.stores.local.evictions import DiskLimits
from legokv.stores.local.registry import Registry


@pytest.fixture(name="locked")
def locked_fixture(tmp_path):
    """A registry with one document, while another process writes to its file."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        document = register(registry)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        yield registry, document, other
        other.close()


def test_a_reader_waits_for_no_writer_of_another_process_nor_for_one_that_waits(locked):
    registry, document, other = locked
    waiting = threading.Thread(target=registry.touch, args=("default", [document.id]))
    waiting.start()
    time.sleep(0.1)
    started = time.monotonic()
    assert len(registry.chunks("default", document.id)) == 2
    assert registry.get("default", document.id) == document
    assert registry.pinned_chunk_keys() == frozenset()
    assert time.monotonic() - started < BUSY_SECONDS / 2
    assert waiting.is_alive()
    other.execute("COMMIT")
    waiting.join()
    assert registry.get("default", document.id).last_used_at is not None


def test_an_ended_pin_makes_no_reader_wait_for_a_writer(locked):
    registry, document, other = locked
    other.execute("UPDATE documents SET pinned = 1, expires_at = 1.0, ttl_seconds = 1.0")
    other.execute("COMMIT")
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    registry.sweep()
    assert registry.get("default", document.id).pinned
    assert time.monotonic() - started < BUSY_SECONDS / 2
    other.execute("COMMIT")
    registry.sweep()
    assert not registry.get("default", document.id).pinned


def test_a_process_that_opens_the_registry_waits_for_no_writer(locked, tmp_path):
    started = time.monotonic()
    with Registry.open(tmp_path / "registry.sqlite") as beside:
        assert len(beside.page("default").documents) == 1
    assert time.monotonic() - started < BUSY_SECONDS / 2


def test_a_reader_sees_one_state_however_much_is_written_beside_it(tmp_path):
    with Registry.open(tmp_path / "registry.sqlite") as registry:
        with registry.database.snapshot() as sql:
            count = "SELECT count(*) FROM documents"
            assert sql.execute(count).fetchone()[0] == 0
            register(registry)
            assert sql.execute(count).fetchone()[0] == 0
        with registry.database.snapshot() as sql:
            assert sql.execute(count).fetchone()[0] == 1


def test_readers_of_many_threads_leave_few_connections(tmp_path):
    with Registry.open(tmp_path / "registry.sqlite") as registry:
        document = register(registry, new())
        threads = [
            threading.Thread(target=registry.get, args=("default", document.id)) for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(registry.database._idle_readers) <= 8


def test_a_closed_registry_reads_no_more(tmp_path):
    registry = Registry.open(tmp_path / "registry.sqlite")
    registry.page("default")
    registry.close()
    with pytest.raises(sqlite3.ProgrammingError):
        registry.page("default")


def test_opening_the_registry_again_ends_no_lock_of_this_process(tmp_path):
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry, Registry.open(path):
        register(registry)
        # Whoever closes the file last removes the log beside it: this one is not the last.
        code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2])"
        ask = (str(path), "SELECT count(*) FROM documents")
        subprocess.run([sys.executable, "-c", f"{code}; c.close()", *ask], check=True)
        assert path.with_name("registry.sqlite-wal").exists()


def change(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement, *values in statements:
            connection.execute(statement, values)


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        (["DROP TABLE stored_chunks"], "its table stored_chunks lacks dropped, key, namespace"),
        (["ALTER TABLE documents DROP COLUMN failure"], "its table documents lacks failure"),
        (["PRAGMA user_version = 1"], "table stored_chunks already exists"),
        (["PRAGMA user_version = -1"], "has registry version -1, this program uses version 3"),
        (["PRAGMA user_version = 1", "DROP TABLE documents"], "already exists"),
    ],
)
def test_a_file_of_its_version_without_what_it_must_have_is_refused(tmp_path, statements, what):
    path = tmp_path / "registry.sqlite"
    Registry.open(path).close()
    change(path, *[(statement,) for statement in statements])
    with pytest.raises(EngineMismatch, match=f"{what}.*move the file away to start an empty"):
        Registry.open(path)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("documents", "num_tokens", "many"),
        ("documents", "state", "asleep"),
        ("documents", "created_at", float("inf")),
        ("documents", "last_used_at", b"\xff"),
        ("documents", "name", b"\xff"),
        ("documents", "claim_deadline", "soon"),
        ("documents", "text", b"\xff"),
        ("chunks", "token_ids", "1 2 3"),
        ("chunks", "token_ids", b"12345"),
        ("chunks", "key", b"\xff"),
    ],
)
def test_a_value_that_no_program_writes_is_told_with_its_place(tmp_path, table, column, value):
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        document = register(registry)
        change(path, (f"UPDATE {table} SET {column} = ?", value))
        read = registry.chunks if table == "chunks" else registry.get
        with pytest.raises(CacheUnavailable, match=f"row of its table {table} has the {column}"):
            read("default", document.id)


def test_a_text_that_is_no_utf_8_is_told(tmp_path):
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        document = register(registry)
        change(path, ("UPDATE documents SET name = CAST(? AS TEXT)", b"\xff\xfe"))
        with pytest.raises(CacheUnavailable, match="it is damaged"):
            registry.get("default", document.id)


@pytest.mark.parametrize(("column", "value"), [("num_bytes", "many"), ("key", b"\xff")])
def test_a_stored_chunks_row_that_is_none_is_told(tmp_path, column, value):
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        stored = StoredChunks(registry.database, DiskLimits(Budget(1000)), frozenset)
        with stored.keep(StoredRow("a", "default", 10)):
            pass
        change(path, (f"UPDATE stored_chunks SET {column} = ?", value))
        with pytest.raises(CacheUnavailable, match=f"stored_chunks has the {column}"):
            stored.rows()


def pages_of(path, newest_first):
    """How SQLite finds a page of a namespace in this file."""
    asked = []
    with Registry.open(path) as registry, registry.database.snapshot() as sql:
        sql.set_trace_callback(asked.append)
        document_rows.page(sql, "default", 5, None, newest_first=newest_first).fetchall()
        sql.set_trace_callback(None)
        return " ".join(row["detail"] for row in sql.execute(f"EXPLAIN QUERY PLAN {asked[0]}"))


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("older", [False, True])
def test_a_page_reads_its_rows_alone_and_sorts_nothing(tmp_path, older, newest_first):
    path = tmp_path / "registry.sqlite"
    with Registry.open(path):
        pass
    if older:
        change(path, ["DROP INDEX documents_by_namespace"])
    plan = pages_of(path, newest_first)
    edge = "number<?" if newest_first else "number>?"
    assert f"SEARCH documents USING INDEX documents_by_namespace (namespace=? AND {edge})" in plan
    assert "B-TREE" not in plan

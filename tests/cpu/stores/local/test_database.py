"""Who waits for whom at the registry's file."""

import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from registries import new, register

from legokv.stores.local.database import BUSY_SECONDS
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
    assert time.monotonic() - started < BUSY_SECONDS / 10
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
    assert time.monotonic() - started < BUSY_SECONDS / 10
    other.execute("COMMIT")
    registry.sweep()
    assert not registry.get("default", document.id).pinned


def test_a_process_that_opens_the_registry_waits_for_no_writer(locked, tmp_path):
    started = time.monotonic()
    with Registry.open(tmp_path / "registry.sqlite") as beside:
        assert len(beside.page("default").documents) == 1
    assert time.monotonic() - started < BUSY_SECONDS / 10


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

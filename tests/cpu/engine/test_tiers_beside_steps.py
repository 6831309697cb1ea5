"""With write_behind, whoever steps does no work of files or databases, and waits for none."""

import sqlite3
import threading
import time

import pytest
import torch
from texts import random_ids
from tier_engines import tier

from legokv import Engine, EngineSettings
from legokv.built.folder import cache_root, registry_file
from legokv.engine.request import GenerateRequest
from legokv.stores.fleet.connection import Connection
from legokv.stores.local.database import BUSY_SECONDS, Database
from legokv.stores.local.files import ChunkFolder
from legokv.stores.pins import LatestPins


@pytest.fixture(name="opened")
def opened_fixture(tiny_engine_folder, tmp_path):
    def opened(pool_tokens=1024, pinned_keys=frozenset, **settings):
        record = EngineSettings(
            pool_tokens=pool_tokens, attention="torch", cache_dir=tmp_path, **settings
        )
        return Engine.open(
            tiny_engine_folder(), settings=record, pinned_keys=pinned_keys, write_behind=True
        )

    return opened


def finish(engine, *jobs):
    """Step until these jobs have ended: the longest step's seconds, and each job's events."""
    longest, events = 0.0, [[] for _ in jobs]
    deadline = time.monotonic() + 60
    while not all(found and type(found[-1]).__name__ in ENDINGS for found in events):
        started = time.monotonic()
        assert started < deadline
        engine.step()
        longest = max(longest, time.monotonic() - started)
        for job, found in zip(jobs, events, strict=True):
            while not job.queue.empty():
                found.append(job.queue.get())
    return longest, events


ENDINGS = ("Finished", "Prefill")


@pytest.fixture(name="asked_by")
def asked_by_fixture(monkeypatch):
    """Names of the threads that asked a file or a database, with what they asked."""
    asked = []

    def watched(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            asked.append((threading.current_thread().name, f"{owner.__name__}.{name}"))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for name in ("has", "read", "write", "remove", "_locked"):
        watched(ChunkFolder, name)
    for name in ("transaction", "snapshot"):
        watched(Database, name)
    watched(Connection, "run")
    watched(Connection, "asking")
    return asked


@pytest.mark.parametrize("host_bytes", [2**30, 0])
def test_whoever_steps_asks_no_file_and_no_database(opened, asked_by, host_bytes):
    engine = opened(pool_tokens=128, host_bytes=host_bytes)
    chunks = [engine.chunk(random_ids(n)) for n in range(4)]
    here = threading.current_thread().name
    for _ in range(3):  # compiled and written, evicted, and read again
        for chunk in chunks:
            job = engine.submit(GenerateRequest([chunk, [5, 6]], 2))
            engine.tiers.flush()
            asked_by.clear()
            finish(engine, job)
            assert [what for thread, what in asked_by if thread == here] == []
    engine.tiers.flush()
    assert tier(engine, "disk").num_chunks == 4
    assert engine.executor.counters.compiled_chunks == 4


def test_whoever_steps_asks_no_redis(opened, asked_by, redis_url):
    engine = opened(pool_tokens=128, host_bytes=0, redis_url=redis_url)
    chunks = [engine.chunk(random_ids(n)) for n in range(4)]
    here, by_others = threading.current_thread().name, set()
    for _ in range(3):  # compiled and written, evicted, and read again
        for chunk in chunks:
            job = engine.submit(GenerateRequest([chunk, [5, 6]], 2))
            asked_by.clear()
            finish(engine, job)
            engine.executor.drop(engine.chunk(random_ids(9)).key)
            assert [what for thread, what in asked_by if thread == here] == []
            engine.tiers.flush()
            by_others |= {what for _, what in asked_by}
    assert "Connection.run" in by_others
    assert tier(engine, "remote").num_chunks == 4


@pytest.mark.parametrize("submit", [Engine.submit_compile, Engine.submit_rank])
def test_whoever_compiles_or_ranks_what_is_kept_asks_no_file_and_no_database(
    opened, asked_by, submit
):
    engine = opened(host_bytes=0)
    here = threading.current_thread().name
    for _ in range(2):  # compiled or ranked, and again, in an engine that finds it kept
        chunk = engine.chunk(random_ids(1))
        job = submit(engine, chunk)
        asked_by.clear()
        finish(engine, job)
        assert [what for thread, what in asked_by if thread == here] == []
        engine.tiers.flush()
        assert tier(engine, "disk").num_chunks == 1
        engine = opened(host_bytes=0)


@pytest.mark.parametrize("host_bytes", [2**30, 0])
def test_a_stored_chunk_gives_the_same_answer_and_is_not_compiled_again(opened, host_bytes):
    first = opened(host_bytes=host_bytes)
    chunk = first.compile(random_ids(1))
    expected = first.prefill([chunk, [5, 6]]).logits
    first.tiers.flush()
    second = opened(host_bytes=host_bytes)
    result = second.prefill([chunk, [5, 6]])
    assert torch.equal(result.logits, expected)
    assert second.executor.counters.compiled_chunks == 0


def test_answers_go_on_while_another_process_writes_to_the_registry(opened, tmp_path):
    engine = opened()
    file = registry_file(cache_root(tmp_path, engine.facts))
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = engine.submit(GenerateRequest([[5, 6]], 30))
    compiling = engine.submit_compile(engine.chunk(random_ids(2)))
    longest, _ = finish(engine, answer, compiling)
    assert longest < BUSY_SECONDS / 2
    other.execute("COMMIT")
    engine.tiers.flush()
    assert tier(engine, "disk").num_chunks == 1


def test_answers_go_on_while_a_disk_is_slow_to_read(opened, monkeypatch):
    first = opened()
    chunk = first.compile(random_ids(3))
    first.tiers.flush()
    engine = opened(host_bytes=0)
    real = ChunkFolder.read

    answered = threading.Event()

    def slowly(self, chunk):
        assert answered.wait(60)
        return real(self, chunk)

    monkeypatch.setattr(ChunkFolder, "read", slowly)
    answer = engine.submit(GenerateRequest([[5, 6]], 40))
    engine.step()
    waiting = engine.submit(GenerateRequest([chunk, [7]], 2))
    finish(engine, answer)
    answered.set()
    _, (late,) = finish(engine, waiting)
    assert late[-1].usage.compiled_tokens == 0


def test_pins_are_known_without_asking_and_soon_after_they_change():
    pins, asking = {"a"}, []

    def ask():
        asking.append(threading.current_thread().name)
        return pins

    latest = LatestPins(ask, seconds=0.01)
    assert latest() == {"a"}
    pins.add("b")
    deadline = time.monotonic() + 60
    while latest() != {"a", "b"}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert asking.count(threading.current_thread().name) == 1

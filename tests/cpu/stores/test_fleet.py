"""Servers without Triton that share one Redis: compiled once, answered alike, right without it."""

import threading
import time

import numpy as np
import pytest
import torch
from crash_worker import LIMITS, TEXTS
from engine_chunks import chunks_of, compile_last
from redis_server import redis_running

from legokv import Engine, EngineSettings
from legokv.documents.compiling import Compiler
from legokv.errors import CacheUnavailable, NotFound
from legokv.serving.documents import DocumentService
from legokv.stores.fleet.address import shared_cache
from legokv.stores.fleet.connection import REPLY_SECONDS, RETRY_SECONDS
from legokv.stores.opening import open_registry

# Processes and clocks of a busy test machine are late by this much at times.
LATE_SECONDS = 60.0


class Server:
    """A machine of its own: engine, folder and registry client, but for the Redis it shares."""

    def __init__(self, engine_folder, cache_dir, redis_url, **settings):
        shared = {"cache_dir": cache_dir, "redis_url": redis_url, "attention": "torch"}
        self.engine = Engine.open(
            engine_folder, settings=EngineSettings(pool_tokens=2048, **{**shared, **settings})
        )
        location = shared_cache(redis_url, self.engine.facts.fingerprint)
        self.registry = open_registry(cache_dir / "unused", location)
        compiler = Compiler(self.registry, self._compile, self._drop, LIMITS)
        self.service = DocumentService(self.registry, self.engine.tokenizer, compiler, LIMITS)
        self.compiled = []

    def _compile(self, namespace, chunks):
        self.compiled.append(chunks[-1].token_ids)
        return compile_last(self.engine, chunks, namespace)

    def _drop(self, keys):
        for key in keys:
            self.engine.drop(key)

    def register(self, number, **fields):
        request = {"operation": "create", "text": TEXTS[number], **fields}
        return self.service.reply(request)["document"]

    def answer(self, *documents):
        """Logits and usage of a question over documents, by what the registry says of them."""
        stored = self.registry.chunks("default", *(document["id"] for document in documents))
        return self.engine.prefill([*chunks_of(self.engine, stored), [5, 6]])

    def tier(self, name):
        return {stats.tier: stats for stats in self.engine.cache_stats()}[name]

    def forget(self):
        """Empty the pool, and the other tiers of this machine."""
        for resident in self.engine.cache.residents:
            self.engine.cache.drop(resident.chunk.key)
        for tier in self.engine.tiers.tiers:
            if tier.name == "host":
                tier.clear()
            if tier.name == "disk":
                for row in tier.stored.rows():
                    tier.remove(row.key)


@pytest.fixture
def redis(tmp_path):
    (tmp_path / "redis").mkdir()
    with redis_running(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def start(tiny_engine_folder, tmp_path, redis):
    def started(name, **settings):
        return Server(tiny_engine_folder(), tmp_path / name, redis.url, **settings)

    return started


def wait_until(holds, seconds):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.05)


def test_a_document_registered_at_one_server_is_linked_at_another_without_compiling(start):
    one, other = start("one"), start("other")
    document = one.register(0)
    expected = one.answer(document)
    result = other.answer(document)
    assert torch.equal(result.logits, expected.logits)
    assert (result.usage.compiled_tokens, other.compiled) == (0, [])
    assert other.tier("remote").hits == document["num_chunks"] > 1
    again = other.register(0)
    assert (again["state"], other.compiled) == ("ready", [])


def test_a_machine_keeps_what_it_took_from_the_fleet_and_asks_for_it_once(start):
    one, other = start("one"), start("other")
    document = one.register(0)
    other.answer(document)
    hits = other.tier("remote").hits
    other.engine.cache.drop(other.engine.cache.residents[0].chunk.key)
    assert other.answer(document).usage.compiled_tokens == 0
    assert other.tier("remote").hits == hits
    assert other.tier("disk").num_chunks == document["num_chunks"]


def test_servers_that_register_one_document_at_once_compile_it_once(start):
    servers = [start("one"), start("other")]
    documents = []

    def register(server):
        documents.append(server.register(1))

    threads = [threading.Thread(target=register, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert documents[0] == documents[1]
    assert documents[0]["state"] == "ready"
    assert sum(len(server.compiled) for server in servers) == documents[0]["num_chunks"]


def test_pins_names_and_deletions_are_the_whole_fleet_s(start):
    one, other = start("one"), start("other")
    document = one.register(0, pinned=True, name="notes")
    assert len(other.registry.pinned_chunk_keys()) == document["num_chunks"]
    other.service.reply({"operation": "delete", "id": document["id"]})
    with pytest.raises(NotFound):
        one.answer(document)
    assert one.tier("remote").num_chunks == 0


def test_engines_of_two_types_share_no_kv(start):
    one, other = start("one"), start("other", dtype="bfloat16")
    document = one.register(0)
    result = other.answer(document)
    assert result.usage.compiled_tokens > 0
    assert other.tier("remote").num_chunks == 2 * document["num_chunks"]


def test_bytes_damaged_in_redis_are_compiled_again_and_mended(start, record_property):
    one, other = start("one"), start("other")
    document = one.register(0)
    expected = one.answer(document).logits
    remote = one.engine.tiers.tiers[-1]
    with remote._connection.asking() as client:
        for name in client.scan_iter(f"{remote._connection.prefix}kv/*"):
            client.setrange(name, client.strlen(name) - 9, b"\0\1\2\3")
    result = other.answer(document)
    assert torch.equal(result.logits, expected)
    assert result.usage.compiled_tokens == document["num_tokens"]
    damaged = other.tier("remote").failed_reads
    assert damaged == {"checksum": document["num_chunks"]}
    record_property("fact", f"{damaged['checksum']} chunks damaged in Redis, 0 wrong answers")
    third = start("third")
    assert third.answer(document).usage.compiled_tokens == 0


def test_a_redis_that_is_killed_makes_answers_slower_not_wrong_and_is_used_again(
    start, redis, record_property
):
    one, other = start("one"), start("other")
    document, second = one.register(0), one.register(1)
    expected = one.answer(document).logits
    other.answer(document)
    redis.kill()
    other.forget()
    result = other.answer(document)
    assert torch.equal(result.logits, expected)
    assert result.usage.compiled_tokens == document["num_tokens"]
    with pytest.raises(CacheUnavailable, match=r"redis://127\.0\.0\.1:\d+/0 d.* not answer"):
        other.answer(second)  # never seen here: nobody can say what it holds
    with pytest.raises(CacheUnavailable, match="is asked again in"):
        other.register(2)
    redis.start()
    wait_until(lambda: other.tier("remote").num_chunks > 0, RETRY_SECONDS + LATE_SECONDS)
    wait_until(lambda: reachable(other), RETRY_SECONDS + LATE_SECONDS)
    other.forget()
    assert other.answer(document, second).usage.compiled_tokens == 0
    assert other.register(2)["state"] == "ready"
    record_property("fact", "1 kill of Redis survived, 0 wrong answers")


def reachable(server):
    try:
        server.registry.namespaces()
        return True
    except CacheUnavailable:
        return False


def test_a_redis_that_hangs_costs_one_wait_not_one_a_request(start, redis):
    one, other = start("one"), start("other")
    documents = [one.register(number) for number in range(3)]
    expected = [one.answer(document).logits for document in documents]
    for document in documents:
        other.answer(document)
    other.forget()
    redis.freeze()
    started = time.monotonic()
    for document, logits in zip(documents, expected, strict=True):
        assert torch.equal(other.answer(document).logits, logits)
    took = time.monotonic() - started
    # One wait of the connection that asks for documents and one of the engine's; six else.
    assert took < 5 * REPLY_SECONDS
    redis.thaw()
    wait_until(lambda: reachable(other), RETRY_SECONDS + LATE_SECONDS)


def test_a_server_starts_without_redis_and_uses_it_when_it_is_there(start, redis):
    redis.kill()
    server = start("one")
    with pytest.raises(CacheUnavailable):
        server.register(0)
    chunk = server.engine.compile(np.arange(3, 40))
    assert server.engine.prefill([chunk, [5, 6]]).usage.compiled_tokens == 0
    redis.start()
    wait_until(lambda: reachable(server), RETRY_SECONDS + LATE_SECONDS)
    assert server.register(0)["state"] == "ready"


def test_a_redis_without_room_is_an_error_that_says_so_and_the_engine_goes_on(start, redis):
    one = start("one")
    document = one.register(0)
    expected = one.answer(document).logits
    with one.engine.tiers.tiers[-1]._connection.asking() as client:
        client.config_set("maxmemory", 1)
    one.engine.compile(np.arange(3, 60))
    with pytest.raises(CacheUnavailable, match=r"refused: .*maxmemory"):
        one.register(1)
    assert one.tier("remote").failed_writes >= 1
    assert torch.equal(one.answer(document).logits, expected)
    with one.engine.tiers.tiers[-1]._connection.asking() as client:
        client.config_set("maxmemory", 0)
    assert one.register(1)["state"] == "ready"


def test_a_redis_that_lost_everything_knows_no_document_and_takes_it_again(start, redis):
    one, other = start("one"), start("other")
    document = one.register(0)
    expected = one.answer(document).logits
    with one.engine.tiers.tiers[-1]._connection.asking() as client:
        client.flushall()
    with pytest.raises(NotFound):
        other.answer(document)
    assert one.register(0)["id"] == document["id"]
    assert torch.equal(other.answer(document).logits, expected)

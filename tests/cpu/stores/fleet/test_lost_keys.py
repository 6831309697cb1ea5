"""A Redis that drops keys as if they were cache: each costs one document at most."""

import random
import threading
import time
import uuid
from contextlib import closing, suppress

import pytest
from redis_server import redis_running
from registries import CAP, compile_all, new
from small_chunks import small_chunk, small_kv

from legokv.built.settings import EngineSettings
from legokv.chunks.budget import Budget
from legokv.documents.document import State
from legokv.errors import CacheUnavailable, NotFound
from legokv.stores.fleet.address import shared_cache
from legokv.stores.fleet.advice import advice
from legokv.stores.fleet.connection import Connection
from legokv.stores.fleet.registry import RedisRegistry
from legokv.stores.fleet.tier import RemoteLimits, RemoteTier
from legokv.stores.tiers import open_tiers

TEXTS = ("One text.", "Two texts.", "Three texts.")


class World:
    """Three documents of two namespaces with KV in Redis."""

    def __init__(self, url):
        self.connection = Connection(url, uuid.uuid4().hex)
        self.registry = RedisRegistry(self.connection)
        self.tier = RemoteTier(self.connection, RemoteLimits(Budget(2**30)))
        self.ids = [self.register(number) for number in range(3)]

    def register(self, number):
        document = new(TEXTS[number], self.namespace(number), ((number + 1,),))
        made, is_new = self.registry.register(document, {"pinned": number == 0}, CAP)
        if is_new:
            compile_all(self.registry, made, [small_chunk(number).key])
            self.tier.write(small_chunk(number, self.namespace(number)), small_kv(number))
        return made.id

    def namespace(self, number):
        return "other" if number == 2 else "default"

    def redis_keys(self):
        with self.connection.asking() as client:
            return sorted(client.scan_iter(f"{self.connection.prefix}*"))

    def lose(self, *keys):
        with self.connection.asking() as client:
            client.unlink(*keys)

    def listed(self):
        return {
            document.id: document
            for namespace in ("default", "other")
            for document in self.registry.page(namespace).documents
        }

    def answering(self):
        """Those of the three that a question finds."""
        found = set()
        for number, document_id in enumerate(self.ids):
            with suppress(NotFound):
                chunks = self.registry.chunks(self.namespace(number), document_id)
                assert [chunk.token_ids for chunk in chunks] == [(number + 1,)]
                found.add(number)
        return found


@pytest.fixture(name="world")
def world_fixture(redis_url):
    world = World(redis_url)
    with closing(world.registry):
        yield world


def test_any_one_key_lost_costs_one_document_which_is_listed_as_lost_and_taken_again(redis_url):
    kinds = [key.rsplit(b":", 1)[1] for key in World(redis_url).redis_keys()]
    assert len(kinds) > 20
    for kind in kinds:
        world = World(redis_url)
        world.lose(world.connection.prefix.encode() + kind)
        assert len(world.answering()) >= 2, kind
        listed = world.listed()
        assert set(listed) == set(world.ids), kind
        lost = [d for d in listed.values() if d.state == State.FAILED]
        assert len(lost) <= 1, kind
        assert all(d.failure.startswith("lost: ") for d in lost), kind
        assert [world.register(number) for number in range(3)] == world.ids
        assert world.answering() == {0, 1, 2}, kind
        assert all(d.state != State.FAILED for d in world.listed().values()), kind
        assert len({d.created_at for d in world.listed().values()}) == 3
        for number in range(3):
            assert world.tier.write(small_chunk(number, world.namespace(number)), small_kv(number))
        assert world.tier.stats().num_chunks == 3, kind
        size = sum(row.num_bytes for row in world.tier.rows())
        assert world.tier.stats().num_bytes == size, kind
        for number, document_id in enumerate(world.ids):
            world.registry.delete(world.namespace(number), document_id)
        assert world.registry.namespaces() == (), kind


@pytest.mark.parametrize("seed", range(12))
def test_whatever_part_is_lost_nothing_but_that_fails(redis_url, seed):
    world, draw = World(redis_url), random.Random(seed)
    keys = world.redis_keys()
    world.lose(*draw.sample(keys, draw.randint(2, len(keys) - 1)))
    world.registry.sweep()
    world.registry.pinned_chunk_keys()
    world.answering()
    assert {world.register(number) for number in range(3)} == set(world.ids)
    assert world.answering() == {0, 1, 2}
    assert set(world.listed()) == set(world.ids)
    assert world.tier.write(small_chunk(7), small_kv(7))
    size = sum(row.num_bytes for row in world.tier.rows())
    assert world.tier.stats().num_bytes == size


def test_documents_that_an_older_version_registered_are_found(world):
    with world.connection.asking() as client:
        client.hdel(f"{world.connection.prefix}numbers", "")
        client.srem(f"{world.connection.prefix}namespaces", "")
        client.srem(f"{world.connection.prefix}pinned", "")
    again = RedisRegistry(world.connection)
    assert again.namespaces() == ("default", "other")
    assert again.get("other", world.ids[2]).state == State.READY
    assert again.pinned_chunk_keys() == {small_chunk(0).key}


def test_a_document_deleted_anywhere_is_not_remembered_when_redis_is_away(world, redis_url):
    server = RedisRegistry(Connection(redis_url, world.connection.prefix.split("{")[1][:32]))
    with closing(server):
        for document_id in world.ids[:2]:
            server.chunks("default", document_id)
        wait_until(lambda: listeners(world) == 1)
        world.registry.delete("default", world.ids[0])
        wait_until(lambda: server._recall.get("default", world.ids[0]) is None)
        server.connection._retry_at = time.monotonic() + 60  # as when Redis is away
        assert len(server.chunks("default", world.ids[1])) == 1
        with pytest.raises(CacheUnavailable):
            server.chunks("default", world.ids[0])


def test_a_document_is_answered_without_redis_for_a_bounded_time(world, redis_url):
    """One that others deleted meanwhile answers no longer than that at a server that is cut off."""
    model = world.connection.prefix.split("{")[1][:32]
    server = RedisRegistry(Connection(redis_url, model), stale_seconds=900)
    with closing(server):
        server.chunks("default", world.ids[0])
        server.connection._retry_at = time.monotonic() + 60  # as when Redis is away
        server.connection._answered_at = time.monotonic() - 890
        assert len(server.chunks("default", world.ids[0])) == 1
        server.connection._answered_at -= 20
        with pytest.raises(CacheUnavailable, match=r"91\d s, .* for 900 s \(--redis-stale-seconds"):
            server.chunks("default", world.ids[0])
        server.connection._retry_at = 0.0
        assert len(server.chunks("default", world.ids[0])) == 1
        assert server.connection.silent_seconds < 60


def test_a_server_that_is_asked_nothing_knows_whether_redis_is_there(world, redis_url, monkeypatch):
    monkeypatch.setattr("legokv.stores.fleet.deletions._LISTEN_SECONDS", 0.02)
    monkeypatch.setattr("legokv.stores.fleet.connection.CONFIRM_SECONDS", 0.0)
    server = RedisRegistry(Connection(redis_url, world.connection.prefix.split("{")[1][:32]))
    with closing(server):
        server.hear_deletions()
        wait_until(lambda: listeners(world) == 1)
        server.connection._answered_at -= 3600
        wait_until(lambda: server.connection.silent_seconds < 60)


def test_what_was_deleted_while_nobody_listened_is_forgotten_when_somebody_does(world):
    server = RedisRegistry(world.connection)
    with closing(server):
        server._deletions.start = lambda: None
        for document_id in world.ids[:2]:
            server.chunks("default", document_id)
        world.registry.delete("default", world.ids[0])
        assert server._recall.get("default", world.ids[0]) is not None
        del server._deletions.start
        server._deletions.start()
        wait_until(lambda: server._recall.get("default", world.ids[0]) is None)
        assert server._recall.get("default", world.ids[1]) is not None


def test_a_connection_is_closed_under_nobody_and_asks_no_more(redis_url, monkeypatch):
    monkeypatch.setattr("legokv.stores.fleet.connection.REPLY_SECONDS", 60.0)
    connection = Connection(redis_url, "closed")
    asking, may_go_on, told = threading.Event(), threading.Event(), []

    def ask():
        with connection.asking() as client:
            asking.set()
            assert may_go_on.wait(60)
            told.append(client.ping())

    asker = threading.Thread(target=ask)
    asker.start()
    assert asking.wait(60)
    closer = threading.Thread(target=connection.close)
    closer.start()
    wait_until(lambda: connection._closed)
    with pytest.raises(CacheUnavailable, match=r"the connection to redis://.* is closed"):
        connection.now()
    assert closer.is_alive()
    may_go_on.set()
    asker.join()
    closer.join()
    assert told == [True]


def test_one_who_asks_for_too_long_has_the_connection_closed_under_it(
    redis_url, monkeypatch, caplog
):
    monkeypatch.setattr("legokv.stores.fleet.connection.REPLY_SECONDS", 0.05)
    connection = Connection(redis_url, "closed")
    with connection.asking():
        connection.close()
    (line,) = caplog.messages
    assert line.startswith("the connection to redis://")
    assert line.endswith("is closed under 1 who asked for more than 0.1 s")


def listeners(world):
    with world.connection.asking() as client:
        ((_, number),) = client.pubsub_numsub(f"{world.connection.prefix}deleted")
        return number


def wait_until(holds, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.01)


def test_a_policy_that_evicts_and_a_memory_too_small_are_said_with_what_to_set():
    assert advice(0, "noeviction", 2**30) == []
    (policy,) = advice(0, "allkeys-lru", 2**30)
    assert "allkeys-lru" in policy
    assert "set maxmemory-policy noeviction" in policy
    (memory,) = advice(2**20, "noeviction", 2**30)
    assert "maxmemory of 1048576 bytes" in memory


def test_a_server_says_at_its_start_that_redis_evicts(tmp_path, caplog):
    with redis_running(tmp_path, "--maxmemory-policy", "allkeys-lru") as redis:
        shared = shared_cache(redis.url, "f" * 64)
        open_tiers(None, EngineSettings(host_bytes=0), frozenset, shared=shared)
        assert "its maxmemory-policy is allkeys-lru" in caplog.text
        assert "set maxmemory-policy noeviction" in caplog.text


def test_a_redis_without_room_lets_documents_be_deleted_and_taken_again(tmp_path):
    with redis_running(tmp_path, "--maxmemory", "6mb") as redis:
        registry = RedisRegistry(Connection(redis.url, uuid.uuid4().hex))
        ids = []

        def fill():
            for number in range(1000):
                document = registry.register(new(f"{number} " * 20_000), {}, CAP)[0]
                compile_all(registry, document, [f"one {number}", f"two {number}"])
                ids.append(document.id)

        with pytest.raises(CacheUnavailable, match=r"maxmemory.*legokv cache models"):
            fill()
        assert len(ids) > 10
        for document_id in ids:
            registry.sweep()
            registry.delete("default", document_id)
        assert registry.register(new(), {}, CAP)[1]
        registry.close()

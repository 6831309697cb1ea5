"""What only the remote tier meets: writers that die on the way, and many machines at once."""

import multiprocessing
import random
import time
import uuid

import pytest
import torch
from small_chunks import small_chunk

from legokv.chunks.budget import Budget
from legokv.stores.fleet.connection import Connection
from legokv.stores.fleet.tier import RemoteLimits, RemoteTier

BUDGET_CHUNKS = 4
ARRIVING_SECONDS = 60
NUM_KILLS = 8
# 8 MiB: several pieces. The header takes less than a KiB.
KV_SHAPE = (8, 2, 16, 8, 1024)
LARGE_BYTES = 8 * 2 * 16 * 8 * 1024 * 4 + 1024


def write_on(url, model, first, writing):
    """One large chunk after another under a budget of BUDGET_CHUNKS of them, until killed."""
    torch.set_num_threads(1)
    tier = RemoteTier(Connection(url, model), RemoteLimits(Budget(BUDGET_CHUNKS * LARGE_BYTES)))
    kv = torch.zeros(KV_SHAPE)
    for number in range(10**6):
        tier.write(small_chunk(first + number % 9), kv)
        writing.set()


@pytest.fixture
def connection(redis_url):
    return Connection(redis_url, uuid.uuid4().hex)


@pytest.fixture
def writer(connection, redis_url):
    """Starts processes that write; each is given when it has begun, and ended with the test."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_worker", "legokv.stores.fleet.tier"])
    model = connection.prefix.split("{")[1].split("}")[0]
    started = []

    def start(first):
        writing = context.Event()
        arguments = (redis_url, model, first, writing)
        process = context.Process(target=write_on, args=arguments, daemon=True)
        process.start()
        started.append(process)
        assert writing.wait(60), "a writer did not begin in 60 s"
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def names(connection, kind):
    with connection.asking() as client:
        return list(client.scan_iter(f"{connection.prefix}{kind}/*"))


def counted(connection):
    """What the index says at one moment: chunks, and their bytes."""
    with connection.asking() as client, client.pipeline() as pipe:
        pipe.hlen(f"{connection.prefix}sizes")
        pipe.get(f"{connection.prefix}bytes")
        number, num_bytes = pipe.execute()
    return number, int(num_bytes)


def test_a_writer_killed_on_the_way_leaves_whole_chunks_and_bytes_that_expire(
    connection, writer, record_property
):
    order = random.Random(3)
    for first in range(NUM_KILLS):
        process = writer(first)
        time.sleep(order.uniform(0.0, 0.1))
        process.kill()
        process.join()
    with connection.asking() as client:
        sizes = client.hgetall(f"{connection.prefix}sizes")
        kept = {name.rsplit(b"/")[-1]: client.strlen(name) for name in names(connection, "kv")}
        assert kept
        assert kept == {key: int(size) for key, size in sizes.items()}
        assert counted(connection) == (len(kept), sum(kept.values()))
        assert {client.ttl(name) for name in names(connection, "kv")} == {-1}
        left = [client.ttl(name) for name in names(connection, "arriving")]
    assert all(0 < seconds <= ARRIVING_SECONDS for seconds in left), left
    record_property("fact", f"{NUM_KILLS} kills survived, {len(left)} unfinished writes expire")


def test_machines_that_write_at_once_stay_within_one_budget(connection, writer):
    for first in (0, 50):
        writer(first)
    seen = []
    for _ in range(100):
        seen.append(counted(connection))
        time.sleep(0.005)
    assert max(number for number, _ in seen) == BUDGET_CHUNKS, "both wrote more than fits"
    assert max(num_bytes for _, num_bytes in seen) <= BUDGET_CHUNKS * LARGE_BYTES

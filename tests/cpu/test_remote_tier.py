"""What only the remote tier meets: writers that die on the way, and many machines at once."""

import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from legokv.fleet.connection import Connection

TESTS = Path(__file__).resolve().parent.parent
BUDGET_CHUNKS = 4
ARRIVING_SECONDS = 60
NUM_KILLS = 3

# Writes one large chunk after another under a budget of BUDGET_CHUNKS of them, until it is killed.
WRITER = """
import sys
import torch
from small_chunks import small_chunk
from legokv.chunks.budget import Budget
from legokv.fleet.connection import Connection
from legokv.fleet.remote_tier import RemoteLimits, RemoteTier

url, model, first, num_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
tier = RemoteTier(Connection(url, model), RemoteLimits(Budget(num_bytes)))
kv = torch.zeros(8, 2, 16, 8, 1024)  # 8 MiB: several pieces
for number in range(10**6):
    tier.write(small_chunk(first + number % 9), kv)
    if not number:
        print("writing", flush=True)
"""
LARGE_BYTES = 8 * 2 * 16 * 8 * 1024 * 4 + 1024


@pytest.fixture
def connection(redis_url):
    return Connection(redis_url, uuid.uuid4().hex)


def writer(connection, redis_url, first):
    """A process that has begun to write."""
    model = connection.prefix.split("{")[1].split("}")[0]
    arguments = [redis_url, model, str(first), str(BUDGET_CHUNKS * LARGE_BYTES)]
    prelude = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + WRITER, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


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
    connection, redis_url, record_property
):
    order = random.Random(3)
    for first in range(NUM_KILLS):
        process = writer(connection, redis_url, first)
        time.sleep(order.uniform(0.0, 0.2))
        end(process)
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


def test_machines_that_write_at_once_stay_within_one_budget(connection, redis_url):
    writers = [writer(connection, redis_url, first) for first in (0, 50)]
    seen = []
    try:
        for _ in range(100):
            seen.append(counted(connection))
            time.sleep(0.005)
    finally:
        for process in writers:
            end(process)
    assert max(number for number, _ in seen) == BUDGET_CHUNKS, "both wrote more than fits"
    assert max(num_bytes for _, num_bytes in seen) <= BUDGET_CHUNKS * LARGE_BYTES

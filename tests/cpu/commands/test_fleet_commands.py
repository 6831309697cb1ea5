"""`legokv cache` with a fleet's Redis: what it counts, checks, takes and gives there too."""

import pytest
import torch
from machine import Machine
from redis_server import redis_running

from legokv import Engine, EngineSettings
from legokv.stores.fleet.address import shared_cache
from legokv.stores.opening import open_shared_registry


class FleetMachine(Machine):
    """A server of the fleet without Triton, and the commands as they are run beside it."""

    def __init__(self, engine_folder, cache_dir, redis_url):
        self.cache_dir = cache_dir
        engine = Engine.open(
            engine_folder,
            settings=EngineSettings(cache_dir=cache_dir, attention="torch", redis_url=redis_url),
        )
        registry = open_shared_registry(shared_cache(redis_url, engine.facts.fingerprint))
        options = ("--engine", engine_folder, "--cache-dir", cache_dir, "--redis-url", redis_url)
        super().__init__(engine, registry, options)
        self.remote = engine.tiers.tiers[-1]

    def files(self):
        return sorted(self.cache_dir.rglob("*.safetensors"))

    def in_redis(self):
        """Names of the bytes kept there; the client that may damage them."""
        with self.remote._connection.asking() as client:
            return sorted(client.scan_iter(f"{self.remote._connection.prefix}kv/*")), client


@pytest.fixture
def start(tiny_engine_folder, tmp_path):
    """Machines of one fleet by name."""
    (tmp_path / "redis").mkdir()
    with redis_running(tmp_path / "redis") as redis:
        yield lambda name: FleetMachine(tiny_engine_folder(), tmp_path / name, redis.url)


def test_stats_count_what_is_on_this_disk_and_what_is_in_redis(start, capsys):
    one, other = start("one"), start("other")
    document = one.register(0)
    names, client = one.in_redis()
    status, said = other.command(capsys, "stats")
    assert status == 0
    assert said["tiers"]["disk"]["chunks"] == 0
    assert said["tiers"]["remote"]["chunks"] == document["num_chunks"] == len(names) > 1
    assert said["tiers"]["remote"]["bytes"] == sum(map(client.strlen, names))
    counted = said["namespaces"]["default"]
    assert (counted["documents"], counted["disk_chunks"]) == (1, 0)
    assert counted["remote_chunks"] == len(names)
    assert counted["remote_bytes"] == said["tiers"]["remote"]["bytes"]
    _, said = one.command(capsys, "stats")
    assert said["tiers"]["disk"]["bytes"] == said["tiers"]["remote"]["bytes"]


def test_verify_is_content_with_a_sound_redis_and_removes_what_is_not_whole(start, capsys):
    machine = start("one")
    for number in range(3):
        machine.register(number)
    names, client = machine.in_redis()
    status, said = machine.command(capsys, "verify")
    assert (status, said["checked_files"]) == (0, 2 * len(names))
    client.setrange(names[0], 700, b"\1\2\3")
    client.set(names[1], client.get(names[2]))
    client.append(names[3], b"more")
    client.delete(names[4])
    client.set(names[0][:-64] + b"f" * 64, b"named by nobody")
    status, said = machine.command(capsys, "verify")
    assert status == 1
    assert (said["damaged_files"], said["rows_without_file"], said["files_without_row"]) == (
        3,
        1,
        1,
    )
    status, said = machine.command(capsys, "verify")
    assert status == 0
    left, _ = machine.in_redis()
    assert left == sorted([names[2], *names[5:]])
    assert said["checked_files"] == len(machine.files()) + len(left)
    assert machine.remote.stats().num_bytes == sum(map(client.strlen, left))


def test_an_export_takes_from_redis_what_is_not_on_this_disk(start, tmp_path, capsys):
    one, other = start("one"), start("other")
    document = one.register(0)
    expected = one.answer(document).logits
    _, gave = other.command(capsys, "export", tmp_path / "set.tar")
    assert (gave["chunks"], gave["unusable_chunks"]) == (document["num_chunks"], 0)
    assert other.files() == []
    one.command(capsys, "clear", "--documents")
    _, took = other.command(capsys, "import", tmp_path / "set.tar")
    assert took["chunks"] == document["num_chunks"]
    third = start("third")
    result = third.answer(document)
    assert torch.equal(result.logits, expected)
    assert result.usage.compiled_tokens == 0


def test_clear_empties_this_disk_and_redis_of_a_namespace_and_leaves_its_documents(start, capsys):
    machine = start("one")
    cleared, kept = machine.register(0), machine.register(1, namespace="other")
    status, said = machine.command(capsys, "clear", "--namespace", "default")
    assert (status, said["removed_chunks"]) == (0, 2 * cleared["num_chunks"])
    assert len(machine.files()) == len(machine.in_redis()[0]) == kept["num_chunks"]
    assert len(machine.registry.page("default").documents) == 1


def test_a_command_without_redis_says_that_it_does_not_answer(start, capsys):
    machine = start("one")
    machine.options[-1] = "redis://127.0.0.1:1/0"
    status, said = machine.command(capsys, "stats")
    assert (status, "redis://127.0.0.1:1/0 does not answer" in said) == (1, True)


def test_a_folder_that_no_server_used_is_refused_unless_the_fleet_keeps_all_in_redis(
    start, tmp_path, capsys, monkeypatch
):
    machine = start("one")
    document = machine.register(0)
    machine.options[3] = tmp_path / "mistyped"
    status, said = machine.command(capsys, "stats")
    assert (status, f"{tmp_path / 'mistyped'} is no cache of the engine" in said) == (1, True)
    assert not (tmp_path / "mistyped").exists()
    monkeypatch.setenv("LEGOKV_DISK_BYTES", "0")
    status, said = machine.command(capsys, "stats")
    assert (status, said["tiers"]["remote"]["chunks"]) == (0, document["num_chunks"])

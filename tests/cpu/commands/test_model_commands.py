"""`legokv cache models` and `forget`: other models' leftovers, on disk and in Redis."""

import json
import uuid

import pytest
from registries import new
from small_chunks import small_chunk, small_disk_tier, small_kv

from legokv.chunks.budget import Budget
from legokv.cli import main
from legokv.stores.fleet.connection import Connection
from legokv.stores.fleet.registry import RedisRegistry
from legokv.stores.fleet.tier import RemoteLimits, RemoteTier


def command(capsys, *arguments):
    """The status, and the JSON or the error."""
    capsys.readouterr()
    status = main(["cache", *map(str, arguments), "--format", "json"])
    out = capsys.readouterr()
    return status, json.loads(out.out) if out.out else out.err


@pytest.fixture(name="cache")
def cache_fixture(tmp_path):
    """A folder with what two models left."""
    for number, model in enumerate(("a" * 16, "b" * 16), 1):
        tier = small_disk_tier(tmp_path / model)
        for n in range(number):
            tier.write(small_chunk(n), small_kv(n))
        tier.stored._database.close()
    return tmp_path


def test_each_model_s_leftovers_are_listed_and_one_s_are_removed(cache, capsys):
    status, said = command(capsys, "models", "--cache-dir", cache)
    assert status == 0
    assert {model: kept["num_chunks"] for model, kept in said["disk"].items()} == {
        "a" * 16: 1,
        "b" * 16: 2,
    }
    status, said = command(capsys, "forget", "--cache-dir", cache, "b" * 16)
    assert (status, said["forgotten"], said["disk"]["b" * 16]["num_chunks"]) == (0, "b" * 16, 2)
    assert [path.name for path in cache.iterdir()] == ["a" * 16]


@pytest.mark.parametrize("kind", [("models",), ("forget", "a" * 16)])
def test_a_folder_that_is_not_there_is_said_not_listed_as_empty(tmp_path, capsys, kind):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "none", tmp_path / "file"):
        status, said = command(capsys, *kind, "--cache-dir", folder)
        assert status == 1
        assert f"the cache folder {folder} does not exist: give --cache-dir" in said


@pytest.mark.parametrize("model", ["c" * 16, "../x", "*", "", "\x1b[31m"])
def test_a_model_of_which_nothing_is_kept_is_refused_with_those_there_are(cache, capsys, model):
    status, said = command(capsys, "forget", "--cache-dir", cache, model)
    assert status == 1
    assert f"nothing is kept of a model {model!r}; there are {'a' * 16}, {'b' * 16}" in said
    assert len(list(cache.iterdir())) == 2


def test_a_model_in_redis_is_listed_and_removed_and_no_other(redis_url, tmp_path, capsys):
    models = [uuid.uuid4().hex[:16] for _ in range(2)]
    for model in models:
        connection = Connection(redis_url, model)
        RedisRegistry(connection).register(new(), {}, 0)
        RemoteTier(connection, RemoteLimits(Budget(2**30))).write(small_chunk(1), small_kv(1))
    place = ("--cache-dir", tmp_path, "--redis-url", redis_url)
    _, said = command(capsys, "models", *place)
    assert all(said["redis"][m]["documents"] == said["redis"][m]["chunks"] == 1 for m in models)
    assert said["redis"][models[0]]["bytes"] > 1000
    status, _ = command(capsys, "forget", *place, models[0])
    _, said = command(capsys, "models", *place)
    assert (status, models[0] in said["redis"], models[1] in said["redis"]) == (0, False, True)


def test_a_model_whose_servers_listen_is_not_removed_from_redis(redis_url, tmp_path, capsys):
    model = uuid.uuid4().hex[:16]
    registry = RedisRegistry(Connection(redis_url, model))
    document = registry.register(new(), {}, 0)[0]
    registry.hear_deletions()
    with registry.connection.asking() as client:
        while not client.pubsub_numsub(f"{registry.connection.prefix}deleted")[0][1]:
            pass
    place = ("--cache-dir", tmp_path, "--redis-url", redis_url)
    status, said = command(capsys, "forget", *place, model)
    assert (status, "stop its servers first" in said) == (1, True)
    assert registry.get("default", document.id) == document
    registry.close()

"""The registries under test, SQLite's and Redis', with a clock that tests set."""

import uuid
from contextlib import closing

import pytest
from fakes import Clock

from legokv.documents.document import NewDocument
from legokv.stores.fleet.connection import Connection
from legokv.stores.fleet.registry import RedisRegistry
from legokv.stores.local.registry import Registry

CAP = 100


@pytest.fixture(name="clock")
def clock_fixture():
    return Clock()


@pytest.fixture(name="registry", params=["sqlite", "redis"])
def registry_fixture(request, tmp_path, clock):
    if request.param == "sqlite":
        opened = Registry.open(tmp_path / "registry.sqlite", clock)
    else:
        url = request.getfixturevalue("redis_url")
        opened = RedisRegistry(Connection(url, uuid.uuid4().hex, clock=clock))
    with closing(opened):
        yield opened


def new(text="Some text.", namespace="default", chunks=((1, 2, 3), (4, 5))):
    return NewDocument(namespace, text, chunks)


def register(registry, document=None, **changes):
    return registry.register(document or new(), changes, CAP)[0]


def compile_all(registry, document, keys):
    claim = registry.take_claim(document.namespace, document.id, 60.0)
    for position, key in enumerate(keys):
        registry.record_chunk(claim, position, key)
    registry.finish_claim(claim)

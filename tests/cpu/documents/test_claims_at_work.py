"""A claim lasts while its holder works, and nobody takes from whoever holds it next."""

import threading
import time
import uuid
from contextlib import closing

import pytest
from registries import (  # noqa: F401 - fixtures
    clock_fixture,
    new,
    register,
    registry_fixture,
)

from legokv.documents.compiling import Compiler
from legokv.documents.document import DocumentLimits, State
from legokv.errors import ClaimLost, EngineGone
from legokv.stores.fleet.connection import Connection
from legokv.stores.fleet.registry import RedisRegistry
from legokv.stores.local.registry import Registry

LIMITS = DocumentLimits(claim_seconds=3.0, wait_seconds=20.0)


@pytest.fixture(name="live_registry", params=["sqlite", "redis"])
def live_registry_fixture(request, tmp_path):
    if request.param == "sqlite":
        opened = Registry.open(tmp_path / "registry.sqlite")
    else:
        opened = RedisRegistry(Connection(request.getfixturevalue("redis_url"), uuid.uuid4().hex))
    with closing(opened):
        yield opened


def test_a_chunk_that_takes_longer_than_a_claim_is_compiled_once(live_registry):
    compiled, dropped = [], []

    def slowly(namespace, chunks):
        compiled.append(chunks[-1].token_ids)
        if len(compiled) == 1:
            time.sleep(4.0)  # the renewals in it may be late by two seconds
        return f"key {chunks[-1].token_ids}"

    document = register(live_registry)
    compiler = Compiler(live_registry, slowly, dropped.extend, LIMITS)
    threads = [
        threading.Thread(target=compiler.bring_to_ready, args=("default", document.id))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (compiled, dropped) == ([(1, 2, 3), (4, 5)], [])
    assert live_registry.get("default", document.id).state == State.READY


def test_a_claim_is_given_back_when_the_engine_goes(registry, clock):
    def stopped(namespace, chunks):
        raise EngineGone("the server stops")

    document = register(registry)
    compiler = Compiler(registry, stopped, lambda keys: None, LIMITS)
    with pytest.raises(EngineGone):
        compiler.compile_if_free("default", document.id)
    clock.seconds += 0.001
    claim = registry.take_claim("default", document.id, 60.0)
    assert claim is not None
    assert [chunk.key for chunk in claim.chunks] == [None, None]


def test_a_claim_that_is_renewed_is_nobody_else_s_and_a_lost_one_is_not_renewed(registry, clock):
    document = register(registry)
    claim = registry.take_claim("default", document.id, 60.0)
    for _ in range(3):
        clock.seconds += 59
        registry.renew_claim(claim)
        assert registry.take_claim("default", document.id, 60.0) is None
    clock.seconds += 60
    assert registry.take_claim("default", document.id, 60.0) is not None
    with pytest.raises(ClaimLost):
        registry.renew_claim(claim)


def test_who_lost_a_claim_leaves_the_chunk_to_whom_it_went(registry, clock):
    document, dropped, heirs = register(registry), [], []

    def overtaken(namespace, chunks):
        clock.seconds += 1000  # as in a process that was stopped for a while
        heirs.append(registry.take_claim(namespace, document.id, 60.0))
        return f"key {chunks[-1].token_ids}"

    compiler = Compiler(registry, overtaken, dropped.extend, LIMITS)
    assert compiler.compile_if_free("default", document.id) is None
    registry.record_chunk(heirs[0], 0, "key (1, 2, 3)")
    registry.record_chunk(heirs[0], 1, "key (4, 5)")
    assert registry.finish_claim(heirs[0]).state == State.READY
    assert dropped == []


def test_a_chunk_of_a_document_deleted_meanwhile_is_dropped(registry):
    document, dropped = register(registry, new("Gone.", chunks=((7,),))), []

    def deleted(namespace, chunks):
        registry.delete(namespace, document.id)
        return "key 7"

    compiler = Compiler(registry, deleted, dropped.extend, LIMITS)
    assert compiler.compile_if_free("default", document.id) is None
    assert dropped == ["key 7"]

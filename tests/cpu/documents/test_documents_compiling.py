"""Who compiles a registered document, once, whatever fails or dies meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from document_world import (  # noqa: F401 - fixtures
    LIMITS,
    TEXT,
    clock_fixture,
    create,
    jobs_fixture,
    listed,
    registry_fixture,
    service_fixture,
    store_fixture,
)
from paths import TESTS
from small_tokenizer import small_tokenizer

from legokv.documents.compiling import Compiler
from legokv.documents.document import DocumentLimits, NewDocument
from legokv.errors import Busy, NotFound, PoolFull
from legokv.serving.documents import DocumentService
from legokv.stores.local.claims import record_chunk, take_claim


def test_a_document_created_without_waiting_is_compiled_in_the_background(service, store, jobs):
    document = create(service, wait=False)["document"]
    assert (document["state"], document["compiled_chunks"], store.compiled) == ("registered", 0, [])
    (job,) = jobs
    job()
    reply = service.reply({"operation": "get", "id": document["id"]})
    assert reply["document"]["state"] == "ready"


def test_waiting_for_a_document_nobody_compiles_compiles_it(service):
    document = create(service, wait=False)["document"]
    reply = service.reply({"operation": "get", "id": document["id"], "wait": True})
    assert reply["document"]["state"] == "ready"


def test_the_default_background_is_a_thread(registry, store):
    compiler = Compiler(registry, store.compile, store.drop, LIMITS)
    service = DocumentService(registry, small_tokenizer(), compiler, LIMITS)
    document = create(service, wait=False)["document"]
    deadline = time.monotonic() + 10
    while registry.get("default", document["id"]).state != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_chunk_that_does_not_compile_fails_the_document_and_creating_it_again_tries_again(
    service, store
):
    store.failure = PoolFull("64 tokens need 4 pages, 1 of 8 are free")
    failed = create(service)["document"]
    assert (failed["state"], failed["failure"]) == ("failed", str(store.failure))
    store.failure = None
    assert create(service)["document"]["state"] == "ready"


def test_an_unforeseen_error_is_noted_raised_and_leaves_no_claim(service, store):
    store.failure = RuntimeError("no such kernel")
    with pytest.raises(RuntimeError):
        create(service)
    (document,) = listed(service)
    assert (document["state"], document["failure"]) == ("failed", "RuntimeError: no such kernel")


def test_what_was_compiled_before_a_failure_is_not_compiled_again(service, store):
    store.failures_after = 2
    assert create(service)["document"]["compiled_chunks"] == 2
    store.failures_after = None
    assert create(service)["document"]["state"] == "ready"
    assert len(store.compiled) == len(set(store.compiled)) == 4


def test_a_document_deleted_while_it_compiles_leaves_nothing_behind(registry, store):
    def compile_then_delete(namespace, chunks):
        key = store.compile(namespace, chunks)
        if len(store.compiled) == 2:
            (document,) = registry.page(namespace).documents
            store.drop(registry.delete(namespace, document.id))
        return key

    compiler = Compiler(registry, compile_then_delete, store.drop, LIMITS)
    service = DocumentService(registry, small_tokenizer(), compiler, LIMITS)
    with pytest.raises(NotFound):
        create(service)
    assert len(store.compiled) == len(store.dropped) == 2
    assert listed(service) == []


def test_waiting_ends_with_numbers_when_another_holds_the_document_too_long(registry, store):
    limits = DocumentLimits(max_chunk_tokens=64, claim_seconds=1e6, wait_seconds=0.1)
    compiler = Compiler(registry, store.compile, store.drop, limits)
    service = DocumentService(registry, small_tokenizer(), compiler, limits)
    document = registry.register(NewDocument("default", "Slow.", ((1,), (2,))), {}, 0)[0]
    claim = take_claim(registry.database, "default", document.id, 1e6)
    record_chunk(registry.database, claim, 0, "k")
    with pytest.raises(Busy, match=r"1 of 2 chunks compiled after 0\.1 s"):
        service.reply({"operation": "get", "id": document.id, "wait": True})


def test_threads_that_create_one_content_at_once_compile_it_once(registry, store):
    def slowly(namespace, chunks):
        time.sleep(0.02)
        return store.compile(namespace, chunks)

    compiler = Compiler(registry, slowly, store.drop, LIMITS)
    service = DocumentService(registry, small_tokenizer(), compiler, LIMITS)
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(create(service))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply["document"]["state"] for reply in replies] == ["ready"] * 4
    assert sum(reply["created"] for reply in replies) == 1
    assert len(store.compiled) == 4


# A server process of its own: creates argv[2]'s text and notes each chunk it compiles in argv[3].
SERVER = """
import json, os, sys, time
from pathlib import Path
from small_tokenizer import small_tokenizer
from legokv.documents.compiling import Compiler
from legokv.documents.document import DocumentLimits
from legokv.stores.local.registry import Registry
from legokv.serving.documents import DocumentService

folder, text, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
limits = DocumentLimits(max_chunk_tokens=64, claim_seconds=float(sys.argv[4]), wait_seconds=300)

def compile_chunk(namespace, chunks):
    token_ids = chunks[-1].token_ids
    with open(folder / "compiled", "a") as file:
        file.write(f"{os.getpid()} {len(token_ids)}\\n")
    time.sleep(seconds)
    return f"key-{sum(token_ids)}-{len(token_ids)}"

registry = Registry.open(folder / "registry.sqlite")
compiler = Compiler(registry, compile_chunk, print, limits)
service = DocumentService(registry, small_tokenizer(), compiler, limits)
print(json.dumps(service.reply({"operation": "create", "text": text})))
"""


def server(folder, seconds, claim_seconds):
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), TEXT, str(seconds), str(claim_seconds)],
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS}/cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )


def compiled_by(folder):
    path = folder / "compiled"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_two_processes_that_create_one_content_at_once_compile_it_once(tmp_path):
    servers = [server(tmp_path, seconds=0.3, claim_seconds=60) for _ in range(2)]
    replies = [json.loads(process.communicate(timeout=300)[0]) for process in servers]
    assert [reply["document"]["state"] for reply in replies] == ["ready", "ready"]
    assert sorted(reply["created"] for reply in replies) == [False, True]
    assert replies[0]["document"] == replies[1]["document"]
    assert len(compiled_by(tmp_path)) == 4


def test_a_killed_process_is_taken_over_where_it_stood(tmp_path):
    first = server(tmp_path, seconds=0.6, claim_seconds=1.5)
    deadline = time.monotonic() + 60
    while len(compiled_by(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=300)
    second = server(tmp_path, seconds=0, claim_seconds=60)
    reply = json.loads(second.communicate(timeout=300)[0])
    assert reply["created"] is False
    assert (reply["document"]["state"], reply["document"]["compiled_chunks"]) == ("ready", 4)
    # The first chunk was recorded, the second died with its process.
    assert compiled_by(tmp_path).count(str(first.pid)) == 2
    assert compiled_by(tmp_path).count(str(second.pid)) == 3

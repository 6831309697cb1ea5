import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small_tokenizer import small_tokenizer

from legokv.chunks.key import chunk_key
from legokv.documents.claims import record_chunk, take_claim
from legokv.documents.compiling import Compiler
from legokv.documents.document import DocumentLimits, NamespaceQuota, NewDocument
from legokv.documents.registry import Registry
from legokv.errors import Busy, InvalidRequest, NotFound, PoolFull
from legokv.serving.document_models import document_replies, open_document_service
from legokv.serving.documents import DocumentService
from legokv.serving.request_log import RequestLine
from legokv.serving.settings import settings_from

LIMITS = DocumentLimits(
    max_document_bytes=2000,
    max_document_tokens=1000,
    max_chunk_tokens=64,
    max_pinned_tokens=300,
    claim_seconds=30.0,
    wait_seconds=10.0,
)

TEXT = "The lighthouse keeper counts ships. " * 6


class Store:
    """Chunk storage that is a dictionary; what it was asked to compile and drop is kept."""

    def __init__(self):
        self.compiled, self.dropped = [], []
        self.failure = None
        self.failures_after = None

    def compile(self, namespace, token_ids):
        if self.failure is not None:
            raise self.failure
        if len(self.compiled) == self.failures_after:
            raise PoolFull("full")
        self.compiled.append(tuple(token_ids))
        return chunk_key("f" * 64, "float32", namespace, token_ids)

    def drop(self, keys):
        self.dropped.extend(keys)


class Clock:
    seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry(tmp_path, clock):
    with Registry.open(tmp_path / "registry.sqlite", clock) as registry:
        yield registry


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def jobs():
    return []


@pytest.fixture
def service(registry, store, jobs):
    compiler = Compiler(registry, store.compile, store.drop, LIMITS)
    return DocumentService(registry, small_tokenizer(), compiler, LIMITS, jobs.append)


def create(service, text=TEXT, **fields):
    return service.reply({"operation": "create", "text": text, **fields})


def listed(service, **fields):
    return service.reply({"operation": "list", **fields})["documents"]


def test_a_created_document_is_ready_with_every_chunk_compiled_once(service, store):
    reply = create(service, name="keeper")
    document = reply["document"]
    assert reply["created"] is True
    assert (document["state"], document["name"]) == ("ready", "keeper")
    assert document["num_chunks"] == document["compiled_chunks"] == len(store.compiled) == 4
    assert all(len(ids) <= 64 for ids in store.compiled)
    joined = [token for ids in store.compiled for token in ids]
    assert small_tokenizer().decode(joined) == TEXT.strip() + "\n\n"
    assert document["num_tokens"] == len(joined)


def test_creating_the_same_content_again_compiles_nothing(service, store):
    first = create(service)["document"]
    compiled = list(store.compiled)
    again = create(service, text=TEXT.replace("\n", "\r\n") + "\n\n")
    assert (again["document"]["id"], again["created"]) == (first["id"], False)
    assert store.compiled == compiled


def test_another_namespace_neither_sees_nor_shares_a_document(service, store):
    mine = create(service, namespace="mine")["document"]
    compiled = len(store.compiled)
    for operation in ("get", "update", "delete"):
        extra = {"pinned": False} if operation == "update" else {}
        with pytest.raises(NotFound, match="in namespace 'yours'"):
            service.reply({"operation": operation, "id": mine["id"], "namespace": "yours", **extra})
    assert listed(service, namespace="yours") == listed(service) == []
    yours = create(service, namespace="yours")["document"]
    assert yours["id"] != mine["id"]
    assert len(store.compiled) == 2 * compiled


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


def test_get_gives_the_text_when_asked(service):
    document = create(service, text="\r\nOne\r\ntwo\n")["document"]
    with_text = service.reply({"operation": "get", "id": document["id"], "text": True})
    assert with_text == {"document": document, "text": "One\ntwo"}
    assert "text" not in service.reply({"operation": "get", "id": document["id"]})


def test_update_changes_only_what_is_named(service):
    document = create(service, name="a", ttl_seconds=60)["document"]
    update = {"operation": "update", "id": document["id"]}
    assert service.reply({**update, "pinned": True})["document"] == {**document, "pinned": True}
    kept = service.reply({**update, "ttl_seconds": None, "name": "b"})["document"]
    assert (kept["expires_at"], kept["name"], kept["pinned"]) == (None, "b", True)


def test_delete_drops_the_chunks_that_no_other_document_has(service, store):
    one = create(service, text="x" * 64 + "a" * 30)["document"]
    two = create(service, text="x" * 64 + "b" * 30)["document"]
    reply = service.reply({"operation": "delete", "id": one["id"]})
    assert reply == {"deleted": one["id"], "dropped_chunks": 1}
    assert len(store.dropped) == 1
    service.reply({"operation": "delete", "id": two["id"]})
    assert len(store.dropped) == 3
    with pytest.raises(NotFound):
        service.reply({"operation": "get", "id": one["id"]})


def test_an_expired_document_loses_its_pin_and_nothing_else(service, store, clock):
    document = create(service, ttl_seconds=60, pinned=True)["document"]
    clock.seconds += 60
    found = service.reply({"operation": "get", "id": document["id"]})["document"]
    assert found == {**document, "pinned": False}
    assert store.dropped == []
    assert create(service)["created"] is False


def test_a_document_past_its_namespace_s_quota_is_refused_before_it_is_compiled(registry, store):
    limits = replace(LIMITS, namespace_quota=NamespaceQuota(max_bytes=5000, token_bytes=20))
    compiler = Compiler(registry, store.compile, store.drop, limits)
    service = DocumentService(registry, small_tokenizer(), compiler, limits)
    document = create(service)["document"]
    compiled = len(store.compiled)
    used = 20 * document["num_tokens"]
    with pytest.raises(Busy, match=f"takes 1640 bytes .* documents have {used}: .* the 5000"):
        create(service, text="b" * 80)
    with pytest.raises(InvalidRequest, match="takes 6040 bytes, more than the 5000"):
        create(service, text="c" * 300)
    assert len(store.compiled) == compiled
    assert len(listed(service)) == 1
    assert create(service)["created"] is False


@pytest.mark.parametrize(("form", "scales"), [("model", 0), ("int8", 4)])
def test_a_server_counts_a_namespace_s_quota_in_the_bytes_of_its_kv(
    tiny_engine_folder, tmp_path, form, scales
):
    flags = {"engine": tiny_engine_folder(), "cache_dir": tmp_path, "kv_stored_dtype": form}
    settings = settings_from(None, {}, {**flags, "namespace_bytes": 8000})
    service = open_document_service(settings, lambda command: pytest.fail("nothing is compiled"))
    # Three layers, keys and values, two heads of 16: float32, or int8 and a float32 scale.
    token_bytes = 3 * 2 * 2 * (16 * (1 if form == "int8" else 4) + scales)
    with pytest.raises(InvalidRequest, match=r"takes \d+ bytes, more than the 8000") as refused:
        create(service, text="The lighthouse keeper counts ships. " * 20)
    assert int(str(refused.value).split()[6]) % token_bytes == 0
    assert listed(service) == []


def test_lists_go_on_where_they_ended(service):
    ids = [create(service, text=f"Text {number}.")["document"]["id"] for number in range(5)]
    first = service.reply({"operation": "list", "limit": 3})
    rest = service.reply({"operation": "list", "limit": 3, "after": first["next_after"]})
    assert [document["id"] for document in first["documents"] + rest["documents"]] == ids
    assert rest["next_after"] is None


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
    def compile_then_delete(namespace, token_ids):
        key = store.compile(namespace, token_ids)
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


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ([], "JSON object, not a list"),
        ({}, "'operation' is missing"),
        ({"operation": "purge"}, "unknown operation 'purge'; known are create, get"),
        ({"operation": 3}, "'operation' is a text, not a whole number"),
        ({"operation": "create"}, "'text' is missing"),
        ({"operation": "create", "text": ""}, "document is empty"),
        ({"operation": "create", "text": " \n\t"}, "document is empty"),
        ({"operation": "create", "text": None}, "'text' is a text, not null"),
        ({"operation": "create", "text": "a\ud800"}, "not UTF-8: half a surrogate.* character 1"),
        ({"operation": "create", "text": "ä" * 1001}, "has 2002 bytes, at most 2000 fit"),
        ({"operation": "create", "text": "a" * 1000}, "has 1002 tokens, at most 1000 fit"),
        ({"operation": "create", "text": "a", "title": "b"}, "unknown field 'title'; known are"),
        ({"operation": "create", "text": "a", "ttl_seconds": -1}, "is -1: it is more than 0 and"),
        ({"operation": "create", "text": "a", "ttl_seconds": 0}, "'ttl_seconds' is 0: it is more"),
        ({"operation": "update", "id": "x", "ttl_seconds": 0}, "or null for no end"),
        ({"operation": "create", "text": "a", "ttl_seconds": float("nan")}, "is nan: it is more"),
        ({"operation": "create", "text": "a", "ttl_seconds": 10**400}, "less than 3.2e"),
        ({"operation": "create", "text": "a", "warm": "remote"}, "'warm' is one of pool, host, di"),
        ({"operation": "create", "text": "a", "ttl_seconds": True}, "seconds, not true or false"),
        ({"operation": "create", "text": "a", "pinned": 1}, "'pinned' is true or false, not a who"),
        ({"operation": "create", "text": "a", "pinned": None}, "'pinned' is true or false, not nu"),
        ({"operation": "create", "text": "a", "wait": "no"}, "'wait' is true or false, not a text"),
        ({"operation": "create", "text": "a", "name": "n" * 257}, "257 characters, at most 256"),
        ({"operation": "create", "text": "a", "namespace": "a/b"}, "namespace is 1 to 64"),
        ({"operation": "create", "text": "a", "namespace": None}, "'namespace' is a text, not nu"),
        ({"operation": "create", "text": "a" * 400, "pinned": True}, "402 tokens is more than the"),
        ({"operation": "get"}, "'id' is missing"),
        ({"operation": "get", "id": "x", "name": "y"}, "unknown field 'name'"),
        ({"operation": "list", "limit": 0}, "'limit' is 0, outside 1 to 1000"),
        ({"operation": "list", "limit": 1.5}, "'limit' is a whole number, not a fraction"),
        ({"operation": "list", "after": -1}, "'after' is -1, outside"),
        ({"operation": "update", "id": "x"}, "nothing to update"),
    ],
)
def test_a_bad_request_says_what_is_wrong_and_changes_nothing(service, store, request_, reason):
    with pytest.raises(InvalidRequest, match=reason):
        service.reply(request_)
    assert listed(service) == []
    assert store.compiled == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"operation": "create", "text": "\xff"}', "byte 0xff at offset 33 of 36"),
        (b"{", "not JSON"),
        (b"[" * 100000, "not JSON"),
        (b'"create"', "JSON object, not a text"),
    ],
)
def test_bytes_that_are_no_request_are_refused(service, body, reason):
    with pytest.raises(InvalidRequest, match=reason):
        reply_bytes(service, body)


def test_bytes_in_are_bytes_out_in_utf_8(service):
    body = json.dumps({"operation": "create", "text": "東京", "name": "é"}).encode()
    reply = json.loads(reply_bytes(service, body))
    assert reply["document"]["name"] == "é"
    assert "é".encode() in reply_bytes(service, body)


def reply_bytes(service, body):
    (reply,) = document_replies(service, {"request": body}, RequestLine("documents"))
    return reply.values["reply"]


def test_threads_that_create_one_content_at_once_compile_it_once(registry, store):
    def slowly(namespace, token_ids):
        time.sleep(0.02)
        return store.compile(namespace, token_ids)

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
from legokv.documents.registry import Registry
from legokv.serving.documents import DocumentService

folder, text, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
limits = DocumentLimits(max_chunk_tokens=64, claim_seconds=1.5, wait_seconds=30)

def compile_chunk(namespace, token_ids):
    with open(folder / "compiled", "a") as file:
        file.write(f"{os.getpid()} {len(token_ids)}\\n")
    time.sleep(seconds)
    return f"key-{sum(token_ids)}-{len(token_ids)}"

registry = Registry.open(folder / "registry.sqlite")
compiler = Compiler(registry, compile_chunk, print, limits)
service = DocumentService(registry, small_tokenizer(), compiler, limits)
print(json.dumps(service.reply({"operation": "create", "text": text})))
"""


def server(folder, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), TEXT, str(seconds)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )


def compiled_by(folder):
    path = folder / "compiled"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_two_processes_that_create_one_content_at_once_compile_it_once(tmp_path):
    servers = [server(tmp_path, seconds=0.3) for _ in range(2)]
    replies = [json.loads(process.communicate(timeout=60)[0]) for process in servers]
    assert [reply["document"]["state"] for reply in replies] == ["ready", "ready"]
    assert sorted(reply["created"] for reply in replies) == [False, True]
    assert replies[0]["document"] == replies[1]["document"]
    assert len(compiled_by(tmp_path)) == 4


def test_a_killed_process_is_taken_over_where_it_stood(tmp_path):
    first = server(tmp_path, seconds=0.6)
    deadline = time.monotonic() + 60
    while len(compiled_by(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    second = server(tmp_path, seconds=0)
    reply = json.loads(second.communicate(timeout=60)[0])
    assert reply["created"] is False
    assert (reply["document"]["state"], reply["document"]["compiled_chunks"]) == ("ready", 4)
    # The first chunk was recorded, the second died with its process.
    assert compiled_by(tmp_path).count(str(first.pid)) == 2
    assert compiled_by(tmp_path).count(str(second.pid)) == 3


def test_the_service_its_registry_and_prompts_load_without_torch():
    program = (
        "import sys, legokv.prompt, legokv.serving.documents, legokv.chunks.key;"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"

"""The documents service: what its operations do, and what they refuse."""

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

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
from small_tokenizer import small_tokenizer

from legokv.built.folder import read_engine_folder
from legokv.documents.compiling import Compiler
from legokv.documents.document import DOCUMENT_BYTES, NamespaceQuota
from legokv.errors import Busy, InvalidRequest, NotFound
from legokv.serving.documents import (
    ChunkRules,
    DocumentService,
    document_replies,
    open_document_service,
)
from legokv.serving.log import RequestLine
from legokv.serving.messages import Compiled
from legokv.serving.settings_sources import settings_from
from legokv.stores.opening import open_registry
from legokv.text.formats import PromptFormats
from legokv.text.prompt import head_ids
from legokv.text.tokenizer import Tokenizer


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


def test_get_gives_the_text_when_asked(service):
    document = create(service, text="\r\nOne\r\ntwo\n")["document"]
    with_text = service.reply({"operation": "get", "id": document["id"], "text": True})
    assert with_text == {"document": document, "text": "One\ntwo"}
    assert "text" not in service.reply({"operation": "get", "id": document["id"]})


@pytest.mark.parametrize("letter", ["\x1b", "\n", "\x00", "\u202e", "\u2028"])
def test_a_name_with_a_letter_that_nobody_sees_is_refused(service, letter):
    document = create(service, text="Short.")["document"]
    for request in (
        {"operation": "create", "text": "Other.", "name": f"a{letter}b"},
        {"operation": "update", "id": document["id"], "name": f"a{letter}b"},
    ):
        with pytest.raises(InvalidRequest, match=rf"'name' has U\+{ord(letter):04X}"):
            service.reply(request)
    named = {"operation": "update", "id": document["id"], "name": "é 東京 👩\u200d🚀.txt"}
    assert service.reply(named)["document"]["name"] == "é 東京 👩\u200d🚀.txt"


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


def test_delete_drops_also_what_a_question_may_be_compiling(registry, store, jobs):
    """Its key is in no registry yet; dropped, the engine stores nothing of it."""

    def keys_of(namespace, chunks):
        return [f"{namespace}/{chunk.position}" for chunk in chunks]

    compiler = Compiler(registry, store.compile, store.drop, LIMITS)
    codec = small_tokenizer()
    service = DocumentService(registry, codec, compiler, LIMITS, jobs.append, ChunkRules(keys_of))
    document = create(service, text="x" * 64 + "a" * 30, wait=False)["document"]
    assert document["compiled_chunks"] == 0
    reply = service.reply({"operation": "delete", "id": document["id"]})
    assert reply == {"deleted": document["id"], "dropped_chunks": 0}
    assert store.dropped == ["default/0", "default/1"]
    assert (store.compiled, len(jobs)) == ([], 1)


def test_an_expired_document_loses_its_pin_and_nothing_else(service, store, clock):
    document = create(service, ttl_seconds=60, pinned=True)["document"]
    clock.seconds += 60
    found = service.reply({"operation": "get", "id": document["id"]})["document"]
    assert found == {**document, "pinned": False}
    assert store.dropped == []
    assert create(service)["created"] is False


def test_a_document_past_its_namespace_s_quota_is_refused_before_it_is_compiled(registry, store):
    limits = replace(LIMITS, namespace_quota=NamespaceQuota(max_bytes=7000, token_bytes=20))
    compiler = Compiler(registry, store.compile, store.drop, limits)
    service = DocumentService(registry, small_tokenizer(), compiler, limits)
    document = create(service)["document"]
    compiled = len(store.compiled)
    used = 20 * document["num_tokens"] + document["num_bytes"] + DOCUMENT_BYTES
    asked = 20 * 82 + 80 + DOCUMENT_BYTES
    with pytest.raises(Busy, match=f"takes {asked} bytes .* 1 documents have {used}: .* the 7000"):
        create(service, text="b" * 80)
    with pytest.raises(InvalidRequest, match=r"takes 7364 bytes .*, more than the 7000"):
        create(service, text="c" * 300)
    assert len(store.compiled) == compiled
    assert len(listed(service)) == 1
    assert create(service)["created"] is False


def test_a_request_may_lower_its_namespace_s_quota_and_not_raise_it(registry, store):
    quota = NamespaceQuota(max_bytes=7000, token_bytes=20)
    for limits, most in (
        (replace(LIMITS, token_bytes=20), 3000),
        (replace(LIMITS, namespace_quota=quota, token_bytes=20), 3000),
        (replace(LIMITS, namespace_quota=quota, token_bytes=20), 9000),
    ):
        compiler = Compiler(registry, store.compile, store.drop, limits)
        service = DocumentService(registry, small_tokenizer(), compiler, limits)
        with pytest.raises(InvalidRequest, match=f"more than the {min(most, 7000)} that"):
            create(service, text="c" * 300, namespace_bytes=most)
    assert listed(service) == []
    assert create(service, text="c" * 60, namespace_bytes=3000)["created"]


@pytest.mark.parametrize(("form", "scales"), [("model", 0), ("int8", 4)])
def test_a_server_counts_a_namespace_s_quota_in_the_bytes_of_its_kv(
    tiny_engine_folder, tmp_path, form, scales
):
    flags = {"engine": tiny_engine_folder(), "cache_dir": tmp_path, "kv_stored_dtype": form}
    settings = settings_from(None, {}, {**flags, "namespace_bytes": 8000})
    service = open_document_service(settings, lambda command: pytest.fail("nothing is compiled"))
    # Three layers, keys and values, two heads of 16: float32, or int8 and a float32 scale.
    token_bytes = 3 * 2 * 2 * (16 * (1 if form == "int8" else 4) + scales)
    text = "The lighthouse keeper counts ships. " * 20
    with pytest.raises(InvalidRequest, match=r"takes \d+ bytes .*, more than the 8000") as refused:
        create(service, text=text)
    kv_bytes = int(str(refused.value).split()[3]) - len(text.strip()) - DOCUMENT_BYTES
    assert kv_bytes > 0
    assert kv_bytes % token_bytes == 0
    assert listed(service) == []


@pytest.mark.parametrize(
    ("compile_behind", "num_words", "stands_behind"),
    [("head", 300, True), ("nothing", 300, False), ("head", 795, False)],
    ids=["the head", "nothing", "a head that the pool does not hold beside it"],
)
def test_a_document_is_compiled_behind_the_server_s_head_where_that_is_asked_for_and_fits(
    tiny_engine_folder, tmp_path, compile_behind, num_words, stands_behind
):
    compiles = []

    def ask(command):
        compiles.append(command)
        return (Compiled(command.segments[-1].key),)

    flags = {"engine": tiny_engine_folder(), "cache_dir": tmp_path, "pool_tokens": 1664}
    given = {"compile_behind": compile_behind, "system_text": "Be brief.", "max_chunk_tokens": 256}
    settings = settings_from(None, {}, {**flags, **given})
    facts = read_engine_folder(settings.engine)
    service = open_document_service(settings, ask)
    text = " ".join("ab" for _ in range(num_words))
    document = create(service, text=text)["document"]
    assert (document["state"], document["num_chunks"] > 1) == ("ready", True)
    tokenizer = Tokenizer.open(tiny_engine_folder())
    head = head_ids(tokenizer, PromptFormats(tokenizer).of({}), "Be brief.")
    *_, last = compiles
    listed_heads = [piece for piece in last.segments if not piece.in_prompt]
    assert len(last.segments) == document["num_chunks"] + stands_behind
    assert [piece.key for piece in listed_heads] == [last.segments[0].key] * stands_behind
    with closing(open_registry(settings.registry_path(facts), None)) as registry:
        chunks = registry.chunks("default", document["id"])
    assert {chunk.head for chunk in chunks} == {head if stands_behind else ()}
    assert [chunk.key for chunk in chunks] == [
        piece.key for piece in last.segments if piece.in_prompt
    ]


def test_lists_go_on_where_they_ended(service):
    ids = [create(service, text=f"Text {number}.")["document"]["id"] for number in range(5)]
    first = service.reply({"operation": "list", "limit": 3})
    rest = service.reply({"operation": "list", "limit": 3, "after": first["next_after"]})
    assert [document["id"] for document in first["documents"] + rest["documents"]] == ids
    assert rest["next_after"] is None


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
        ({"operation": "get", "id": "doc-x", "rank": True}, "'rank' of a document needs 'wait'"),
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
        (b"[" * 5000, "nested too deep: 1 level is taken"),
        (b" " * 10**7, "the request has 10000000 bytes, at most"),
        (b'{"operation": "list", "after": NaN}', "not JSON: NaN is no number"),
        (b'{"namespace": "a", "namespace": "b"}', "has 'namespace' twice"),
        (b'{"after": ' + b"9" * 5000 + b"}", "a number of 5000 digits, at most 400 are taken"),
        (b'"create"', "JSON object, not a text"),
        (b'{"operation": "get", "id": "%s"}' % (b"d" * 65), "'id' has 65 characters, at most 64"),
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
    (reply,) = document_replies({"request": body}, service, RequestLine("documents"))
    return reply.values["reply"]


def test_the_service_its_registry_and_prompts_load_without_torch():
    program = (
        "import sys, legokv.text.prompt, legokv.serving.documents, legokv.chunks.chunk;"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"

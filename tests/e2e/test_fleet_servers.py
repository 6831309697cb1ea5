"""Two real servers with a folder each over one real Redis, and nginx before them."""

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nginx_server import balancing
from paths import CLIENT
from redis_server import RedisServer, redis_running
from scrape import at_rest
from server import ANSWER_SECONDS, RunningServer, refusal, serving
from server_texts import MAX_CHUNK_TOKENS, TEXTS
from tritonclient.utils import InferenceServerException

CLIENT = CLIENT / "ask.py"
QUESTION = {"text_input": "Who keeps it?", "max_tokens": 12}


@dataclass(frozen=True)
class Fleet:
    one: RunningServer
    other: RunningServer
    redis: RedisServer


@pytest.fixture(scope="module")
def fleet(engine_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with redis_running(folder) as redis:
        settings = {"redis_url": redis.url, "max_chunk_tokens": MAX_CHUNK_TOKENS}
        with (
            serving(engine_folder, folder / "one", **settings) as one,
            serving(engine_folder, folder / "other", **settings) as other,
        ):
            yield Fleet(one, other, redis)


def test_a_document_registered_at_one_server_is_answered_by_another_without_compiling(
    fleet: Fleet, record_property: Callable[[str, object], None]
) -> None:
    ids = fleet.one.register(*TEXTS[:2])
    before = fleet.one.ask(document_ids=ids, **QUESTION)
    after = fleet.other.ask(document_ids=ids, **QUESTION)
    assert after["text_output"] == before["text_output"]
    # The prompt's head is a chunk, too, and was compiled by the first answer.
    assert after["compiled_tokens"] == 0
    assert after["cached_tokens"] == before["cached_tokens"] > 0
    listed = fleet.other.document("list")["documents"]
    assert [document["id"] for document in listed] == ids
    num_tokens = after["cached_tokens"]
    record_property("fact", f"2 servers, {num_tokens} tokens linked uncompiled, 0 wrong answers")


def test_two_servers_asked_at_once_to_register_one_document_make_it_once(fleet: Fleet) -> None:
    replies = []

    def create(server: RunningServer) -> None:
        replies.append(server.document("create", text=TEXTS[2]))

    threads = [threading.Thread(target=create, args=(s,)) for s in (fleet.one, fleet.other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply["document"]["state"] for reply in replies] == ["ready", "ready"]
    assert sorted(reply["created"] for reply in replies) == [False, True]
    assert replies[0]["document"]["id"] == replies[1]["document"]["id"]


def answered(server: RunningServer) -> int:
    """How many requests the server's engine has taken."""
    return int(at_rest(server)("legokv_request_queue_seconds_count"))


def post_question(url: str, document_id: str) -> None:
    """Ask over HTTP with the document named in the header."""
    body = json.dumps({**QUESTION, "document_ids": [document_id]}).encode()
    headers = {"x-legokv-document": document_id}
    request = urllib.request.Request(f"{url}/v2/models/generate/generate", body, headers)
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
        assert response.status == 200


def ask_by_client(address: str, document_id: str) -> None:
    """Ask by client/ask.py, which sets the header itself."""
    command = [sys.executable, CLIENT, "Who?", "--url", address, "--documents", document_id]
    limit = ["--max-tokens", "4"]
    result = subprocess.run([*command, *limit], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_example_s_balancer_sends_all_questions_about_a_document_to_one_server(
    fleet: Fleet, tmp_path: Path
) -> None:
    ids = fleet.one.register(*TEXTS)
    with balancing(tmp_path, (fleet.one, fleet.other)) as balancer:
        for ask in (
            lambda document_id: post_question(balancer.http, document_id),
            lambda document_id: ask_by_client(balancer.grpc, document_id),
        ):
            shares = [share_of(fleet, ask, document_id) for document_id in ids]
            assert all(sorted(share) == [0, 3] for share in shares), shares


def share_of(fleet: Fleet, ask: Callable[[str], object], document_id: str) -> list[int]:
    """How many of three questions about a document each server answers."""
    servers = (fleet.one, fleet.other)
    before = [answered(server) for server in servers]
    for _ in range(3):
        ask(document_id)
    return [answered(s) - b for s, b in zip(servers, before, strict=True)]


def test_without_redis_known_documents_are_answered_and_new_ones_refused_with_the_reason(
    fleet: Fleet, record_property: Callable[[str, object], None]
) -> None:
    (known,) = fleet.one.register(TEXTS[0])
    before = fleet.other.ask(document_ids=[known], **QUESTION)
    fleet.redis.kill()
    try:
        after = fleet.other.ask(document_ids=[known], **QUESTION)
        with pytest.raises(InferenceServerException) as refused:
            fleet.other.document("create", text=TEXTS[3])
    finally:
        fleet.redis.start()
    assert after["text_output"] == before["text_output"]
    status, sentence = refusal(refused.value)
    assert "UNAVAILABLE" in status
    assert f"{fleet.redis.url} does not answer" in sentence
    record_property("fact", "2 servers survived 1 kill of Redis, 0 wrong answers")

"""Two real servers, each with a folder of its own, over one real Redis."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import MAX_CHUNK_TOKENS, TEXTS
from redis_server import RedisServer, redis_running
from server import RunningServer, refusal, serving
from tritonclient.utils import InferenceServerException

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
    fleet: Fleet,
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


def test_without_redis_known_documents_are_answered_and_new_ones_refused_with_the_reason(
    fleet: Fleet,
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

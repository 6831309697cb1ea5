"""Answers of the real server equal the library's, over both protocols, alone and together."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import pytest
from server import RunningServer

Library = Callable[..., str]
QUESTION = "Who keeps the oldest lighthouse?"
ORDERS = [list(order) for order in permutations(range(4), 3)]


@pytest.mark.parametrize("numbers", [[0, 1, 2], [2, 0], [3], []])
def test_an_answer_over_grpc_equals_the_library_s_greedy_one(
    server: RunningServer, documents: list[str], library: Library, numbers: list[int]
) -> None:
    ids = [documents[number] for number in numbers]
    fields = {"document_ids": ids} if ids else {}
    reply = server.ask(text_input=QUESTION, max_tokens=24, **fields)
    assert reply["text_output"] == library(QUESTION, numbers, max_tokens=24)
    assert reply["documents_linked"] == len(numbers)


@pytest.mark.parametrize(
    ("options", "library_options"),
    [
        ({"link_tokens": 0}, {"link_tokens": 0}),
        ({"link_tokens": 5}, {"link_tokens": 5}),
        ({"mode": "legolink-0"}, {"mode": "legolink-0"}),
        ({"mode": "full"}, {"mode": "full"}),
    ],
)
def test_modes_and_link_tokens_reach_the_engine(
    server: RunningServer,
    documents: list[str],
    library: Library,
    options: dict[str, object],
    library_options: dict[str, object],
) -> None:
    reply = server.ask(text_input=QUESTION, document_ids=documents, max_tokens=16, **options)
    assert reply["text_output"] == library(QUESTION, [0, 1, 2, 3], max_tokens=16, **library_options)
    assert reply["prompt_tokens"] == (
        reply["cached_tokens"] + reply["recomputed_tokens"] + reply["fresh_tokens"]
    )
    if options.get("mode") == "full":
        assert reply["cached_tokens"] == 0


def test_streamed_pieces_join_to_the_answer_and_are_whole_characters(
    server: RunningServer, documents: list[str], library: Library
) -> None:
    replies = server.stream(text_input=QUESTION, document_ids=documents[:3], max_tokens=40)
    text = "".join(reply["text_output"] for reply in replies)
    assert text == library(QUESTION, [0, 1, 2], max_tokens=40)
    assert len(replies) > 5
    assert "finish_reason" not in replies[0]
    assert replies[-1]["finish_reason"] == "length"
    assert replies[-1]["generated_tokens"] == 40


def test_http_generate_gives_the_same_answer_in_one_reply(
    server: RunningServer, documents: list[str], library: Library
) -> None:
    body = {"text_input": QUESTION, "document_ids": documents[:2], "max_tokens": 24}
    status, reply = server.post("/v2/models/generate/generate", json.dumps(body).encode())
    assert status == 200
    assert json.loads(reply)["text_output"] == library(QUESTION, [0, 1], max_tokens=24)


def test_http_generate_stream_sends_the_same_answer_in_pieces(
    server: RunningServer, documents: list[str], library: Library
) -> None:
    body = {"text_input": QUESTION, "document_ids": documents[:2], "max_tokens": 24, "stream": True}
    status, events = server.post("/v2/models/generate/generate_stream", json.dumps(body).encode())
    replies = [json.loads(e.removeprefix("data: ")) for e in events.decode().split("\n\n") if e]
    assert status == 200
    assert "".join(reply["text_output"] for reply in replies) == library(
        QUESTION, [0, 1], max_tokens=24
    )
    assert len(replies) > 3


def test_requests_at_once_over_shared_documents_answer_as_they_do_alone(
    server: RunningServer, documents: list[str], library: Library
) -> None:
    def ask(numbers: list[int]) -> str:
        ids = [documents[number] for number in numbers]
        return str(server.ask(text_input=QUESTION, document_ids=ids, max_tokens=16)["text_output"])

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, ORDERS))
    assert answers == [library(QUESTION, numbers, max_tokens=16) for numbers in ORDERS]


def test_a_stop_word_and_a_seed_reach_the_engine(
    server: RunningServer, documents: list[str], library: Library
) -> None:
    whole = library(QUESTION, [0], max_tokens=30)
    word = whole[8:11]
    reply = server.ask(
        text_input=QUESTION, document_ids=documents[:1], max_tokens=30, stop_words=[word]
    )
    assert reply["text_output"] == whole[: whole.index(word)]
    assert reply["finish_reason"] == "stop"

    def drawn(seed: int) -> str:
        fields = {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "seed": seed, "max_tokens": 20}
        reply = server.ask(text_input=QUESTION, document_ids=documents[:1], **fields)
        return str(reply["text_output"])

    assert drawn(7) == drawn(7) != drawn(8)


def test_a_second_question_over_the_same_documents_compiles_nothing(
    server: RunningServer, documents: list[str]
) -> None:
    server.ask(text_input=QUESTION, document_ids=documents, max_tokens=1)
    reply = server.ask(text_input="And who else?", document_ids=documents[::-1], max_tokens=1)
    assert reply["compiled_tokens"] == 0
    assert reply["cached_tokens"] > reply["recomputed_tokens"] > 0

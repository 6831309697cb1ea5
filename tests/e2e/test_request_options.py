"""Sampling, several answers, log-probabilities and time limits through the real server."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server import RunningServer, refusal
from tritonclient.utils import InferenceServerException

from legokv import SamplingOptions

Library = Callable[..., str]
QUESTION = "Who keeps the oldest lighthouse?"
DRAWN: dict[str, Any] = {"temperature": 1.2, "top_k": 60, "seed": 21, "max_tokens": 24}


def http(server: RunningServer, **fields: Any) -> tuple[int, dict[str, Any]]:
    status, reply = server.post("/v2/models/generate/generate", json.dumps(fields).encode())
    return status, json.loads(reply)


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": 0.1},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 1.25},
        {"frequency_penalty": -0.75},
    ],
    ids=lambda options: next(iter(options)),
)
def test_penalties_and_min_p_reach_the_engine(
    server: RunningServer, documents: list[str], library: Library, options: dict[str, float]
) -> None:
    sampling = {"temperature": 1.5, "seed": 4, **options}
    reply = server.ask(text_input=QUESTION, document_ids=documents[:2], max_tokens=24, **sampling)
    expected = library(QUESTION, [0, 1], max_tokens=24, sampling=SamplingOptions(**sampling))
    without = SamplingOptions(temperature=1.5, seed=4)
    assert reply["text_output"] == expected
    assert expected != library(QUESTION, [0, 1], max_tokens=24, sampling=without)


def test_a_template_s_variable_that_it_does_not_read_is_refused_with_its_name(
    server: RunningServer,
) -> None:
    switches = json.dumps({"enable_thinking": False})
    status, reply = http(server, text_input=QUESTION, chat_template_kwargs=switches)
    assert status == 400
    assert "does not read 'enable_thinking'" in reply["error"]


def test_several_answers_come_together_and_the_first_is_that_of_one(
    server: RunningServer, documents: list[str], library: Library
) -> None:
    fields = {"text_input": QUESTION, "document_ids": documents[:2], **DRAWN}
    reply = server.ask(num_return_sequences=3, **fields)
    one = library(
        QUESTION,
        [0, 1],
        max_tokens=24,
        sampling=SamplingOptions(temperature=1.2, top_k=60, seed=21),
    )
    assert reply["text_output"][0] == one
    assert len(set(reply["text_output"])) == 3
    assert len(reply["finish_reason"]) == len(reply["generated_tokens"]) == 3
    assert max(reply["generated_tokens"]) <= 24


def test_one_seed_gives_one_answer_whatever_is_answered_beside_it(
    server: RunningServer, documents: list[str], library: Library
) -> None:
    def ask(number: int) -> tuple[int, str]:
        # Every second request has the seed, the others make its batch another each time.
        seed = 21 if number % 2 else number
        ids = documents[: 1 + number % 3] if seed != 21 else documents[:2]
        reply = server.ask(text_input=QUESTION, document_ids=ids, **{**DRAWN, "seed": seed})
        return seed, reply["text_output"]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(16)))
    alone = SamplingOptions(temperature=1.2, top_k=60, seed=21)
    expected = library(QUESTION, [0, 1], max_tokens=24, sampling=alone)
    assert {text for seed, text in answers if seed == 21} == {expected}
    assert len({text for _, text in answers}) > 4


def test_streamed_pieces_of_several_answers_join_by_their_index_to_the_whole_ones(
    server: RunningServer, documents: list[str]
) -> None:
    fields = {"text_input": QUESTION, "document_ids": documents[:2], **DRAWN}
    whole = server.ask(num_return_sequences=3, **fields)
    *pieces, last = server.stream(num_return_sequences=3, **fields)
    joined = ["", "", ""]
    for piece in pieces:
        joined[piece["sequence_index"]] += piece["text_output"]
    assert joined == whole["text_output"]
    assert last["generated_tokens"] == whole["generated_tokens"]
    assert last["finish_reason"] == whole["finish_reason"]


def test_http_gives_several_answers_and_their_log_probs_as_lists(
    server: RunningServer, documents: list[str]
) -> None:
    fields = {"text_input": QUESTION, "document_ids": documents[:2], **DRAWN}
    asked = {"num_return_sequences": 2, "return_log_probs": True, "num_top_log_probs": 2}
    status, reply = http(server, **fields, **asked)
    assert status == 200
    over_grpc = server.ask(**fields, **asked)
    assert reply["text_output"] == over_grpc["text_output"]
    assert reply["cum_log_probs"] == pytest.approx(over_grpc["cum_log_probs"], abs=1e-3)
    for number, count in enumerate(reply["generated_tokens"]):
        tokens = json.loads(reply["token_log_probs"][number])
        assert len(tokens) == count
        assert all(len(token["top"]) == 2 for token in tokens)
        log_probs = [token["log_prob"] for token in tokens]
        assert sum(log_probs) == pytest.approx(reply["cum_log_probs"][number], abs=1e-3)
        assert over_grpc["output_log_probs"][number][:count] == pytest.approx(log_probs, abs=1e-3)


def test_a_greedy_answer_s_tokens_are_the_likeliest_and_spell_its_text(
    server: RunningServer, documents: list[str]
) -> None:
    asked = {"return_log_probs": True, "num_top_log_probs": 1, "max_tokens": 16}
    fields = {"text_input": QUESTION, "document_ids": documents[:1], **asked}
    reply = server.ask(**fields)
    tokens = json.loads(reply["token_log_probs"])
    assert [token["top"][0]["token_id"] for token in tokens] == [t["token_id"] for t in tokens]
    streamed = [r for r in server.stream(**fields) if "finish_reason" not in r]
    assert [t for r in streamed for t in json.loads(r["token_log_probs"])] == tokens
    assert "".join(r["text_output"] for r in streamed) == reply["text_output"]


def test_min_tokens_keeps_a_stop_word_from_ending_the_answer(
    server: RunningServer, documents: list[str]
) -> None:
    fields = {"text_input": QUESTION, "document_ids": documents[:1], "stop_words": ["e", "a", "o"]}
    assert server.ask(max_tokens=40, **fields)["generated_tokens"] < 20
    assert server.ask(max_tokens=40, min_tokens=20, **fields)["generated_tokens"] >= 20


def test_an_answer_past_its_time_ends_with_what_it_has_over_grpc_and_http(
    server: RunningServer, library: Library
) -> None:
    fields = {"text_input": "Who?", "max_tokens": 1900, "min_tokens": 1900, "timeout_seconds": 1.5}
    slow = {"return_log_probs": True, "num_top_log_probs": 20}
    whole = library("Who?", [], max_tokens=40)
    status, over_http = http(server, **fields, **slow)
    assert status == 200
    for reply in (server.ask(**fields, **slow), over_http):
        assert reply["finish_reason"] == "timeout"
        assert 0 < reply["generated_tokens"] < 1900
        assert reply["text_output"][:8] == whole[:8]
    assert server.ask(text_input="Who?", max_tokens=2)["finish_reason"] == "length"


def test_a_request_that_cannot_begin_in_its_time_is_refused_with_the_numbers(
    server: RunningServer, documents: list[str]
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        server.ask(text_input="Who?", document_ids=documents, max_tokens=2, timeout_seconds=1e-6)
    assert "prompt tokens within timeout_seconds 1e-06" in refusal(refused.value)[1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"min_p": 1.5}, "min_p is 0 to 1, not 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.01 to 100, not 0.0"),
        ({"presence_penalty": 3.0}, "presence_penalty is -2 to 2, not 3.0"),
        ({"num_return_sequences": 0}, "'num_return_sequences' is 0, outside 1 to 128"),
        ({"num_return_sequences": 2, "temperature": 0.0}, "num_return_sequences 2 needs a temp"),
        ({"num_top_log_probs": 2}, "num_top_log_probs is 2 without return_log_probs"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens 9 is above max_tokens 3"),
        ({"timeout_seconds": -1.0}, "timeout_seconds is 0 to 604800, not -1.0"),
    ],
)
def test_a_bad_option_is_refused_with_the_number(
    server: RunningServer, fields: dict[str, Any], reason: str
) -> None:
    status, reply = http(server, text_input="Who?", **fields)
    assert status == 400
    assert reason in reply["error"]

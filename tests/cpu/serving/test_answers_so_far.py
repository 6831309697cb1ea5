"""Tokens of several answers, mixed as they come, become each answer's outputs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_tokenizer import small_tokenizer

from legokv.engine.request import Token
from legokv.engine.sampling import TokenLogProbs
from legokv.serving.answers import AnswersSoFar
from legokv.serving.question import question_from_fields
from legokv.serving.settings import Settings


def answers(**fields: object) -> AnswersSoFar:
    question = question_from_fields({"text_input": b"Who?", **fields}, Settings(engine=Path("/e")))
    return AnswersSoFar(question, small_tokenizer(), END_IDS)


def piece(text: str, index: int, finish_reason: str | None = None) -> Token:
    return Token(len(text), text, finish_reason, index)


def spelled(text: str, *, ends: bool) -> list[Token]:
    """The tokens of a text, one a byte, the last with a reason, or an end token behind it."""
    ids = small_tokenizer().encode(text) + ([END] if ends else [])
    reasons = (*[None] * (len(ids) - 1), "stop" if ends else "length")
    return [
        Token(token_id, "", reason, 0, TokenLogProbs(-0.5, ((token_id, -0.5),)))
        for token_id, reason in zip(ids, reasons, strict=True)
    ]


(END,) = small_tokenizer().encode_template("<|im_end|>")
END_IDS = (END,)

MIXED = (
    piece("Or", 0),
    piece("N", 1),
    piece("rin", 0),
    piece("obody", 1, "stop"),
    piece("", 0),
    piece(" Tal", 0, "length"),
)
TOLD = tuple(replace(one, log_probs=TokenLogProbs(-one.id / 4, ((7, -0.5),))) for one in MIXED)


def test_each_answer_has_its_own_text_count_and_reason() -> None:
    made = answers(num_return_sequences=2)
    assert [made.add(one) for one in MIXED] == [None] * 6
    assert made.outputs() == {
        "text_output": ["Orrin Tal", "Nobody"],
        "finish_reason": ["length", "stop"],
        "generated_tokens": [4, 2],
    }


def test_one_answer_s_values_stand_alone() -> None:
    made = answers()
    made.add(piece("Orrin", 0, "stop"))
    assert made.outputs() == {
        "text_output": "Orrin",
        "finish_reason": "stop",
        "generated_tokens": 1,
    }


def test_log_probs_are_rows_of_one_length_with_zeros_behind_an_answer_s_end() -> None:
    made = answers(num_return_sequences=2, return_log_probs=True, num_top_log_probs=1)
    for one in TOLD:
        made.add(one)
    outputs = made.outputs()
    assert outputs["output_log_probs"] == [[-0.5, -0.75, 0, -1], [-0.25, -1.25, 0, 0]]
    assert outputs["cum_log_probs"] == [-2.25, -1.5]
    (_, second) = outputs["token_log_probs"]  # type: ignore[misc]
    names = {token_id: small_tokenizer().token_name(token_id) for token_id in (1, 5, 7)}

    def entry(token_id: int, log_prob: float) -> dict[str, object]:
        name = names[token_id]
        told = {"token": name, "text": name, "bytes": list(name.encode())}
        return {"token_id": token_id, **told, "log_prob": log_prob}

    top = [entry(7, -0.5)]
    assert json.loads(second) == [
        {**entry(1, -0.25), "top": top},
        {**entry(5, -1.25), "top": top},
    ]


@pytest.mark.parametrize("ends", [True, False])
def test_texts_and_bytes_of_the_tokens_join_to_the_answer(ends: bool) -> None:
    made = answers(return_log_probs=True, num_top_log_probs=1)
    text = "Größe 東京"
    for one in spelled(text, ends=ends):
        made.add(replace(one, text=text if one.finish_reason else ""))
    tokens = json.loads(str(made.outputs()["token_log_probs"]))
    assert "".join(token["text"] for token in tokens) == text
    assert bytes(byte for token in tokens for byte in token["bytes"]) == text.encode()
    assert tokens[-1]["token"] == ("<|im_end|>" if ends else "¬")


def test_what_tokens_write_of_a_stop_word_is_no_part_of_their_texts() -> None:
    made = answers(return_log_probs=True, num_top_log_probs=0)
    for one in spelled("é, 東s", ends=False):
        made.add(replace(one, text="é, " if one.finish_reason else ""))
    tokens = json.loads(str(made.outputs()["token_log_probs"]))
    assert [token["text"] for token in tokens] == ["", "é", ",", " ", "", "", "", ""]
    assert bytes(byte for token in tokens for byte in token["bytes"]) == "é, ".encode()


def test_a_stream_has_each_piece_with_its_answer_s_number_and_no_piece_without_text() -> None:
    made = answers(num_return_sequences=2, stream=True)
    sent = [outputs for outputs in map(made.add, MIXED) if outputs is not None]
    assert [(one["text_output"], one["sequence_index"]) for one in sent] == [
        ("Or", 0),
        ("N", 1),
        ("rin", 0),
        ("obody", 1),
        (" Tal", 0),
    ]
    assert made.outputs()["text_output"] == ["", ""]


@pytest.mark.parametrize("index", [0, 1])
def test_a_stream_with_log_probs_has_every_token(index: int) -> None:
    made = answers(num_return_sequences=2, stream=True, return_log_probs=True)
    sent = [outputs for outputs in map(made.add, TOLD) if outputs is not None]
    own = [one for one in sent if one["sequence_index"] == index]
    tokens = [json.loads(str(one["token_log_probs"])) for one in own]
    assert [len(entry) for entry in tokens] == [1] * [4, 2][index]


@pytest.mark.parametrize(("reason", "shown"), [("stop", "é, "), ("length", "é, 東s")])
def test_a_streamed_token_waits_until_its_text_is_certain(reason: str, shown: str) -> None:
    """What begins a stop word (東s) goes out with the text, or without what wrote of the word."""
    made = answers(stream=True, return_log_probs=True, num_top_log_probs=0)
    tokens = spelled("é, 東s", ends=False)
    tokens[-1] = replace(tokens[-1], finish_reason=reason)
    texts = ["", "é", ",", " ", "", "", "", "" if reason == "stop" else "東s"]
    sent = [made.add(replace(one, text=text)) for one, text in zip(tokens, texts, strict=True)]
    numbers = [len(json.loads(str(one["token_log_probs"]))) for one in sent if one is not None]
    assert numbers == [2, 1, 1, 4]
    entries = [
        entry
        for one in sent
        if one is not None
        for entry in json.loads(str(one["token_log_probs"]))
    ]
    assert "".join(entry["text"] for entry in entries) == shown
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == shown.encode()
    assert [entry["token_id"] for entry in entries] == [one.id for one in tokens]
    assert json.loads(str(made.outputs()["token_log_probs"])) == []

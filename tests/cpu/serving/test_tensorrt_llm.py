"""Requests of TensorRT-LLM's clients are answered, or refused with what is not done here."""

from typing import Any

import pytest
from paths import ROOT

from legokv.errors import InvalidRequest
from legokv.serving.question import Question, question_from_fields
from legokv.serving.settings import Settings
from legokv.serving.tensorrt_llm import TENSORRT_LLM_NAMES


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    return Settings(engine=tmp_path)


def question(settings: Settings, **sent: object) -> Question:
    return question_from_fields({"text_input": b"Who?", **sent}, settings)


def test_what_their_clients_always_send_asks_for_nothing(settings: Settings) -> None:
    """Also an end and a padding token, a penalty of beams, and not to have the question again."""
    sent: dict[str, object] = {
        "bad_words": [b""],
        "stop_words": [b""],
        "end_id": 2,
        "pad_id": -1,
        "beam_width": 1,
        "length_penalty": 1.0,
        "early_stopping": False,
        "exclude_input_in_output": True,
        "return_context_logits": False,
        "return_generation_logits": False,
        "repetition_penalty": 1.0,
    }
    assert question(settings, **sent) == question(settings)
    assert question(settings, bad_words=[]) == question(settings)


def test_another_name_of_a_field_means_that_field(settings: Settings) -> None:
    asked = question(settings, random_seed=7, min_length=3)
    assert (asked.sampling.seed, asked.answering.min_tokens) == (7, 3)


def test_a_top_p_of_0_beside_a_top_k_is_off(settings: Settings) -> None:
    assert question(settings, top_k=1, top_p=0.0) == question(settings, top_k=1)
    with pytest.raises(InvalidRequest, match="top_p is above 0"):
        question(settings, top_p=0.0)


def documented() -> dict[str, str]:
    """What docs/serving.md says of each of their fields, by name."""
    text = (ROOT / "docs" / "serving.md").read_text()
    table = text.partition("| name | type | here |\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[1:]]
    return {name.strip("`"): meaning for name, _, meaning in rows}


ODD = {
    "length_penalty": -3.5,
    "early_stopping": True,
    "end_id": 7,
    "pad_id": -1,
    "exclude_input_in_output": False,
}


def test_the_documented_list_is_all_that_is_read() -> None:
    assert set(documented()) == set(TENSORRT_LLM_NAMES)


@pytest.mark.parametrize("name", [n for n, here in documented().items() if "ignored" in here])
def test_what_is_said_to_be_ignored_is_whatever_it_says(settings: Settings, name: str) -> None:
    assert question(settings, **{name: ODD[name]}) == question(settings)
    with pytest.raises(InvalidRequest, match=f"'{name}' is"):
        question(settings, **{name: b"text"})


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"bad_words": [b"no", b"never"]}, "'bad_words' has 2 words, and no words are banned here"),
        ({"beam_width": 4}, "'beam_width' is 4, only 1 is done here: 'num_return_sequences'"),
        ({"beam_width": 0}, "'beam_width' is 0, outside 1 to"),
        ({"return_context_logits": True}, "'return_context_logits' is true, and logits are not"),
        ({"return_generation_logits": True}, "'return_generation_logits' is true"),
        ({"random_seed": 1, "seed": 1}, "'random_seed' is 'seed' here, and both are there"),
        ({"min_length": 1, "min_tokens": 2}, "'min_length' is 'min_tokens' here"),
        ({"end_id": "two"}, "'end_id' is a whole number, not a text"),
        ({"length_penalty": "long"}, "'length_penalty' is a number, not a text"),
        ({"stop_words": [b"a", b""]}, "stop word 2 of 2 is empty"),
        ({"prompt_embedding_table": 1}, "unknown field 'prompt_embedding_table'"),
        ({"lora_task_id": 1}, "unknown field 'lora_task_id'"),
    ],
)
def test_what_is_not_done_here_is_refused_with_the_reason(
    settings: Settings, sent: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        question(settings, **sent)

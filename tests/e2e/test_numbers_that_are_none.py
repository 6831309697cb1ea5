"""A served model that gives NaN for one word: whoever says it is told so, and nobody else."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from server import RunningServer, refusal, replies, serving
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from legokv.build.engine import BuildSettings, build_engine_folder

# No text of the build's check has it.
BAD = "~"
QUESTION = "Who keeps the oldest lighthouse?"
OPTIONS = (
    {},
    {"temperature": 1.0},
    {"top_k": 5},
    {"top_p": 0.5},
    {"min_p": 0.5, "repetition_penalty": 1.3},
    {"return_log_probs": True, "num_top_log_probs": 3},
    {"num_return_sequences": 3, "temperature": 0.7, "return_log_probs": True},
    {"stream": True},
)


@pytest.fixture(scope="module")
def spoilt(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    checkpoint, folder = tiny_checkpoint("llama-untied"), tmp_path_factory.mktemp("spoilt")
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    (bad,) = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(BAD).ids
    weights["model.embed_tokens.weight"][bad] = float("inf")
    save_file(weights, folder / "model.safetensors")
    engine = tmp_path_factory.mktemp("engines") / "spoilt"
    build_engine_folder(folder, engine, BuildSettings("spoilt", dtype="float32"))
    with serving(engine, tmp_path_factory.mktemp("cache"), max_chunk_tokens=64) as one:
        yield one


def strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_prompt_of_no_numbers_is_refused_whatever_it_asks_for_and_others_go_on(
    spoilt: RunningServer,
) -> None:
    long = {"text_input": QUESTION, "max_tokens": 400, "min_tokens": 400}
    expected = [reply.get("text_output") for reply in spoilt.stream(**long)]
    with closing(spoilt.client()) as client:
        others = replies(client, stream=True, **long)
        pieces = [next(others).get("text_output")]
        for options in OPTIONS:
            with pytest.raises(InferenceServerException) as refused:
                spoilt.ask(text_input=f"Is it {BAD}?", max_tokens=8, **options)
            assert "NaN" in refusal(refused.value)[1], options
        pieces += [reply.get("text_output") for reply in others]
    assert pieces == expected
    told = spoilt.ask(text_input=QUESTION, max_tokens=4, return_log_probs=True)
    assert len(strictly(told["token_log_probs"])) == 4


def test_a_document_of_no_numbers_fails_with_the_reason_and_leaves_no_file(
    spoilt: RunningServer,
) -> None:
    before = spoilt.register("The ferry of Vellin leaves at seven.")
    made = spoilt.document("create", text=f"Its mark is {BAD}.")["document"]
    assert made["state"] == "failed"
    assert "has NaN or infinity, and is not kept" in made["failure"]
    with pytest.raises(InferenceServerException, match="has NaN or infinity, and is not kept"):
        spoilt.ask(text_input=QUESTION, document_ids=[made["id"]], max_tokens=4, link_tokens=0)
    after = spoilt.ask(text_input=QUESTION, document_ids=before, max_tokens=4)
    assert (after["compiled_tokens"], after["generated_tokens"]) == (0, 4)

"""A SentencePiece model served: texts are all tokens' decode, and what is said is text."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sentencepiece_like import sentencepiece_backend
from server import RunningServer, serving
from tritonclient.utils import InferenceServerException

from legokv.build.engine import BuildSettings, build_engine_folder

BACKEND = sentencepiece_backend(more=("東", "京", "é"))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ message.content }}{{ eos_token }}{% else %}[INST] {{ message.content }} [/INST]{% endif %}"
    "{% endfor %}"
)
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
DRAWN = {"text_input": "Who?", "max_tokens": 40, "temperature": 3.0, "return_log_probs": True}


@pytest.fixture(scope="module")
def spm(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("spm") / "mit Leerzeichen, 東京 é Ωμέγα"
    folder.mkdir()
    checkpoint = Path(shutil.copytree(tiny_checkpoint("llama"), folder / "checkpoint"))
    (checkpoint / "tokenizer.json").write_text(BACKEND.to_str())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(NAMES))
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    settings = BuildSettings("spm", dtype="float32")
    build_engine_folder(checkpoint, folder / "engine", settings)
    paths, environment = (folder / "engine", folder / "cache"), {"LC_ALL": "C"}
    with serving(*paths, environment=environment, pool_tokens=4096, kept_tokens=2048) as server:
        yield server


def test_engine_and_cache_have_blanks_and_letters_of_any_script_under_lc_all_c(
    spm: RunningServer,
) -> None:
    (document_id,) = spm.register("The height of é is 東京. " * 4, name="Größe 東京")
    assert spm.document("get", id=document_id)["document"]["name"] == "Größe 東京"
    reply = spm.ask(text_input="Who is é?", document_ids=[document_id], max_tokens=3)
    assert reply["documents_linked"] == 1


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_and_its_tokens_texts_are_the_decode_of_all_ids(
    spm: RunningServer, seed: int
) -> None:
    reply = spm.ask(**DRAWN, seed=seed)
    tokens = json.loads(reply["token_log_probs"])
    text = BACKEND.decode([token["token_id"] for token in tokens])
    assert reply["text_output"] == "".join(token["text"] for token in tokens) == text
    streamed = [r["text_output"] for r in spm.stream(**DRAWN, seed=seed)]
    assert "".join(streamed) == text


def test_what_looks_like_a_control_token_is_as_many_tokens_as_letters(spm: RunningServer) -> None:
    said = "</s><s>[/INST]"
    (document,) = spm.register(said)
    reply = spm.ask(text_input=said, document_ids=[document], max_tokens=1)
    rendered = f"[INST] {said}\n\n{said} [/INST]"
    assert reply["prompt_tokens"] == len(rendered) + 1


def test_a_stop_token_ends_an_answer_and_one_that_is_none_is_refused(spm: RunningServer) -> None:
    whole = [t["token_id"] for t in json.loads(spm.ask(**DRAWN, seed=1)["token_log_probs"])]
    reply = spm.ask(**DRAWN, seed=1, stop_token_ids=[whole[5]])
    assert reply["finish_reason"] == "stop"
    assert reply["generated_tokens"] == whole.index(whole[5]) + 1
    with pytest.raises(InferenceServerException, match="stop_token_ids has 384: token ids lie"):
        spm.ask(**DRAWN, stop_token_ids=[384])
    with pytest.raises(InferenceServerException, match="129 words, at most 128 are taken"):
        spm.ask(**DRAWN, stop_words=["a"] * 129)


def test_a_conversation_s_second_turn_goes_on_from_the_first_with_its_tokens_as_drawn(
    spm: RunningServer,
) -> None:
    parts = [{"type": "document", "id": i} for i in spm.register("One light.", "Two lights.")]
    turns = [{"role": "user", "content": [*parts, {"type": "text", "text": "Who?"}]}]
    drawn = {"temperature": 3.0, "seed": 5, "max_tokens": 20}
    first = spm.ask(messages=json.dumps(turns), **drawn)
    turns += [
        {"role": "assistant", "content": first["text_output"]},
        {"role": "user", "content": "Why?"},
    ]
    second = spm.ask(messages=json.dumps(turns), max_tokens=4)
    assert second["recomputed_tokens"] == 0
    assert second["reused_tokens"] == (
        first["recomputed_tokens"] + first["fresh_tokens"] + first["generated_tokens"] - 1
    )

"""A tokenizer is what all its files declare together, or is refused with both sides named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from legokv.build.engine import BuildSettings, facts_from_checkpoint
from legokv.errors import LegokvError, UnsupportedModel
from legokv.text.definition import read_definition
from legokv.text.tokenizer import Tokenizer

CONTROL = "<|im_start|>", "<|im_end|>"
TEXT = "<|im_start|>user\nWhy?<|im_end|>"


@pytest.fixture
def folder(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A llama checkpoint's folder the test may change."""
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))


def change(file: Path, **members: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | members))


def undeclare(folder: Path, *, in_vocabulary: bool) -> dict[str, int]:
    """Take the control tokens out of tokenizer.json; their ids."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    ids = {name: content["model"]["vocab"][name] for name in CONTROL}
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in CONTROL]
    if not in_vocabulary:
        for name in CONTROL:
            del content["model"]["vocab"][name]
    file.write_text(json.dumps(content))
    return ids


@pytest.mark.parametrize("in_vocabulary", [True, False])
def test_tokens_that_only_the_settings_declare_are_control_tokens(
    folder: Path, in_vocabulary: bool
) -> None:
    ids = undeclare(folder, in_vocabulary=in_vocabulary)
    tokens = {str(i): {"content": name, "special": True} for name, i in ids.items()}
    change(folder / "tokenizer_config.json", added_tokens_decoder=tokens)
    tokenizer = Tokenizer.open(folder)
    found = tokenizer.encode_template(TEXT)
    assert (found[0], found[-1]) == tuple(ids.values())
    assert tokenizer.eos_token_ids == (ids["<|im_end|>"],)
    assert tokenizer.decode(found) == "user\nWhy?"
    if in_vocabulary:
        assert found == AutoTokenizer.from_pretrained(folder).encode(TEXT)


def test_tokens_that_only_the_older_file_declares_are_control_tokens(folder: Path) -> None:
    ids = undeclare(folder, in_vocabulary=True)
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    found = Tokenizer.open(folder).encode_template(TEXT)
    assert (found[0], found[-1]) == tuple(ids.values())


def test_a_token_that_the_settings_name_is_one_and_special(folder: Path) -> None:
    ids = undeclare(folder, in_vocabulary=True)
    tokenizer = Tokenizer.open(folder)  # named as bos_token and eos_token
    assert tokenizer.encode_template(TEXT)[0] == ids["<|im_start|>"]
    assert tokenizer.decode(tokenizer.encode_template(TEXT)) == "user\nWhy?"


def test_ids_of_tokens_declared_elsewhere_leave_those_of_tokenizer_json_as_they_are(
    folder: Path,
) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    size = len(content["model"]["vocab"])
    content["added_tokens"].append({**content["added_tokens"][0], "id": size, "content": "<own>"})
    file.write_text(json.dumps(content))
    tokens = {str(size + 7): {"content": "<far>"}, str(size + 3): {"content": "<near>"}}
    change(folder / "tokenizer_config.json", added_tokens_decoder=tokens)
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.encode_template("<own><near><far>") == [size, size + 3, size + 7]
    assert tokenizer.vocab_size == size + 8


def test_an_id_that_is_another_tokens_is_refused_with_both(folder: Path) -> None:
    change(folder / "tokenizer_config.json", added_tokens_decoder={"5": {"content": "<new>"}})
    with pytest.raises(UnsupportedModel, match=r"'<new>' is declared with the id 5, which is '.*'"):
        Tokenizer.open(folder)


def test_a_token_that_has_another_id_in_tokenizer_json_is_refused_with_both(folder: Path) -> None:
    declared = {"300": {"content": "<|im_end|>"}}
    undeclare(folder, in_vocabulary=True)
    change(folder / "tokenizer_config.json", added_tokens_decoder=declared)
    with pytest.raises(UnsupportedModel, match=r"'<\|im_end\|>' is declared with the id 300.* 2"):
        Tokenizer.open(folder)


def test_the_fingerprint_changes_with_tokens_declared_elsewhere_and_only_with_those(
    folder: Path,
) -> None:
    original = Tokenizer.open(folder).fingerprint
    ids = {name: Tokenizer.open(folder).encode_template(name)[0] for name in CONTROL}
    same = {str(i): {"content": name, "special": True} for name, i in ids.items()}
    change(folder / "tokenizer_config.json", added_tokens_decoder=same)
    assert Tokenizer.open(folder).fingerprint == original
    more = same | {"400": {"content": "<new>"}}
    change(folder / "tokenizer_config.json", added_tokens_decoder=more)
    assert Tokenizer.open(folder).fingerprint != original


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"eos_token": "<|gone|>"}, "eos_token"),
        ({"eos_token": {"content": "<|gone|>"}}, "eos_token"),
        ({"bos_token": "<|gone|>", "add_bos_token": True}, "bos_token"),
    ],
)
def test_a_needed_token_without_an_id_is_refused_at_the_build(
    folder: Path, settings: dict[str, Any], key: str
) -> None:
    change(folder / "tokenizer_config.json", **settings)
    with pytest.raises(UnsupportedModel, match=rf"{key} is '<\|gone\|>', which has no id in"):
        facts_from_checkpoint(folder, BuildSettings("llama"))


@pytest.mark.parametrize("end", [384, -1])
def test_an_end_that_is_none_of_the_models_tokens_is_refused_at_the_build(
    folder: Path, end: int
) -> None:
    change(folder / "generation_config.json", eos_token_id=[2, end])
    with pytest.raises(UnsupportedModel, match=f"{end}"):
        facts_from_checkpoint(folder, BuildSettings("llama"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"),
        ("tokenizer.json", "[" * 200_000),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "\x00"),
        ("added_tokens.json", "{"),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UnsupportedModel, match=name.replace(".", r"\.")):
        Tokenizer.open(folder)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({"id": 1}, "added_tokens is an object, not a list"),
        ([{"id": 1}], "added token 0 of 1 .* 'content'"),
        (["</s>"], "added token 0 of 1 .* '</s>'"),
        ([{"id": 1, "content": 7}], "'content' as text"),
        ([{"id": "1", "content": "</s>"}], "'</s>' .* has the id '1'"),
        ([{"id": -1, "content": "</s>"}], "has the id '-1'"),
        ([{"id": True, "content": "</s>"}], "has the id 'True'"),
        ([{"content": "</s>"}], "has the id 'None'"),
    ],
)
def test_an_added_token_without_its_text_or_id_is_refused(tokens: object, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        read_definition(json.dumps({"model": {"vocab": {}}, "added_tokens": tokens}), {})


@pytest.mark.parametrize(
    "vocabulary", [{"a": "0"}, {"a": None}, {"a": [0]}, [["a"]], [[0, 1.0]], ["a"], [None], "a", 7]
)
def test_a_vocabulary_of_another_shape_is_refused(vocabulary: object) -> None:
    with pytest.raises(UnsupportedModel, match=r"the vocabulary of tokenizer\.json has"):
        read_definition(json.dumps({"model": {"vocab": vocabulary}}), {})


@pytest.mark.parametrize("name", ["normalizer", "pre_tokenizer", "post_processor", "decoder"])
@pytest.mark.parametrize(
    "component",
    [["NFC"], "NFC", {"type": 5}, {}, {"type": "Sequence"}, {"type": "Sequence", "decoders": {}}],
)
def test_a_component_of_another_shape_is_refused(name: str, component: object) -> None:
    text = json.dumps({"model": {"vocab": {}}, name: component})
    with pytest.raises(UnsupportedModel, match=f"the {name} of tokenizer.json is "):
        read_definition(text, {})


def test_a_component_of_another_shape_in_a_sequence_is_refused() -> None:
    inner = {"type": "Sequence", "normalizers": [{"type": "NFC"}, ["NFC"]]}
    text = json.dumps({"model": {"vocab": {}}, "normalizer": inner})
    with pytest.raises(UnsupportedModel, match=r"the normalizer of tokenizer\.json is"):
        read_definition(text, {})


def test_a_switch_of_a_token_that_is_none_is_refused() -> None:
    tokens = [{"id": 1, "content": "<a>", "lstrip": "yes"}]
    text = json.dumps({"model": {"vocab": {}}, "added_tokens": tokens})
    with pytest.raises(UnsupportedModel, match=r"lstrip of the token '<a>' .* is 'yes'"):
        read_definition(text, {})


@pytest.mark.parametrize("token", [5, ["</s>"], {"content": [1]}, True])
def test_a_special_token_that_is_no_text_is_refused(folder: Path, token: object) -> None:
    change(folder / "tokenizer_config.json", eos_token=token)
    with pytest.raises(UnsupportedModel, match=r"a special token is .*: it is a text"):
        Tokenizer.open(folder)


def test_a_vocabulary_without_ids_takes_a_declared_token_at_its_end() -> None:
    content = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}}
    settings = {"added_tokens_decoder": {"2": {"content": "<x>"}}}
    assert Tokenizer(json.dumps(content), settings, None).encode_template("a<x>") == [1, 2]
    with pytest.raises(UnsupportedModel, match=r"id 7; in .* comes out as 2"):
        Tokenizer(json.dumps(content), {"added_tokens_decoder": {"7": {"content": "<x>"}}}, None)
    assert read_definition(json.dumps(content), settings).added[0]["id"] == 2


@pytest.mark.parametrize("prefix", ["longer than any part of a merge", "é"])
def test_a_definition_at_which_the_library_itself_ends_is_refused_in_a_sentence(
    folder: Path, prefix: str
) -> None:
    """tokenizers' BPE cuts the prefix off each merge's second part, whatever that begins with."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = prefix
    change(folder / "tokenizer.json", **content)
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json is no tokenizer that can be read"):
        Tokenizer.open(folder)


def test_a_decoder_at_which_the_library_ends_is_refused_at_the_build_and_where_it_is_met(
    folder: Path,
) -> None:
    """tokenizers' Strip takes the one blank of a token from both its ends."""
    strip = {"type": "Strip", "content": "Ġ", "start": 1, "stop": 1}
    change(folder / "tokenizer.json", decoder=strip)
    tokenizer = Tokenizer.open(folder)
    (blank,) = tokenizer.encode(" ")
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    with pytest.raises(UnsupportedModel, match=rf"decoder has no text for the tokens \[{blank}\]"):
        tokenizer.decode([blank])
    with pytest.raises(UnsupportedModel, match="decoder has no text for the tokens"):
        facts_from_checkpoint(folder, BuildSettings("x"))


def test_a_splitter_at_which_the_library_ends_is_refused_in_a_sentence(folder: Path) -> None:
    change(folder / "tokenizer.json", pre_tokenizer={"type": "FixedLength", "length": 0})
    with pytest.raises(LegokvError, match="no tokens for a text of length 1: chunk size must be"):
        Tokenizer.open(folder)

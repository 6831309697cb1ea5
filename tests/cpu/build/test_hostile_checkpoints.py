"""Checkpoints from anywhere: damaged, cut, or made to hurt. Each ends in one sentence, at once."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from build_command import build_engine

from legokv.build.engine import BuildSettings, facts_from_checkpoint
from legokv.errors import LegokvError

SETTINGS = BuildSettings("tiny", dtype="float32")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 2104556\n"
FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")
ALL_FILES = (*FILES, "model.safetensors", "chat_template.jinja")
Damage = Callable[[Path], object]


@pytest.fixture
def checkpoint(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint"))


def sentence(checkpoint: Path) -> str:
    with pytest.raises(LegokvError) as refused:
        facts_from_checkpoint(checkpoint, SETTINGS)
    return str(refused.value)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_pointer_in_place_of_any_file_says_what_to_run(name: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text(POINTER)
    assert f"{name} is a Git LFS pointer, not the file itself: run git lfs pull" in sentence(
        checkpoint
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b'{"a": ', b'{"a": "\xff"}', b"[" * 300_000, b'{"a":' * 100_000, b"{}"],
    ids=["empty", "list", "null", "cut", "no UTF-8", "deep", "deep objects", "nothing"],
)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_line(name: str, content: bytes, checkpoint: Path) -> None:
    (checkpoint / name).write_bytes(content)
    if content == b"{}" and name in ("generation_config.json", "tokenizer_config.json"):
        facts_from_checkpoint(checkpoint, SETTINGS)  # nothing of them must be there
        return
    said = sentence(checkpoint)
    assert "\n" not in said
    assert name in said or content == b"{}"


def edit(name: str, **changes: object) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return damage


def edit_model(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"] |= changes
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return damage


def template(source: str) -> Damage:
    return lambda folder: (folder / "chat_template.jinja").write_text(source)


HOSTILE: dict[str, Damage] = {
    "layers past all counts": edit("config.json", num_hidden_layers=10**9),
    "layers past this checkpoint's": edit("config.json", num_hidden_layers=31),
    "a vocabulary past all counts": edit("config.json", vocab_size=2**40),
    "heads past all counts": edit("config.json", num_attention_heads=2**30),
    "a norm's epsilon that is none": edit("config.json", rms_norm_eps=float("nan")),
    "an endless context": edit("config.json", max_position_embeddings=10**18),
    "merges of tokens that are none": edit_model(merges=[["a", "zzz"]]),
    "a vocabulary of one": edit_model(vocab={"a": 2**32 - 6}, merges=[]),
    "a model that is none": edit("tokenizer.json", model={}),
    "a splitter's pattern that is none": edit(
        "tokenizer.json",
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"},
    ),
    "a template in an object": lambda folder: (
        (folder / "chat_template.jinja").unlink(),
        edit("tokenizer_config.json", chat_template={"a": 1})(folder),
    ),
    "a template that shouts": template("{{ messages[0]['content'] | upper }}"),
    "a template that adds words to numbers": template("{{ 'x' + 1 }}"),
    "a template that divides by zero": template("{{ 1 / 0 }}"),
    "a template that calls itself": template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    "a template of much text": template("{{ 'a' * 20000000000 }}"),
    "a template of much text at once": template("{{ 'a' | center(20000000000) }}"),
    "a template nested deep": template("{{" + "(" * 9000 + ")" * 9000 + "}}"),
    "a template without end": template(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a folder in a file's place": lambda folder: (
        (folder / "config.json").unlink(),
        (folder / "config.json").mkdir(),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_checkpoint_asks_for_wrongly_is_one_line(name: str, checkpoint: Path) -> None:
    HOSTILE[name](checkpoint)
    assert "\n" not in sentence(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_bytes_changed_anywhere_are_a_refusal_or_another_model(
    name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The template is the same each time: tried above.
    monkeypatch.setattr("legokv.text.formats.PromptFormats.check", lambda self: None)
    content, random = (checkpoint / name).read_bytes(), Random(20261129)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(random.randint(1, 3)):
            damaged[random.randrange(len(damaged))] = random.choice(b'{}[]",:0-9e\xff\x00')
        (checkpoint / name).write_bytes(damaged[: random.choice((None, random.randrange(9999)))])
        with suppress(LegokvError):
            facts_from_checkpoint(checkpoint, SETTINGS)


def test_the_build_says_it_in_one_line_and_ends_with_status_1(
    checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / "tokenizer.json").write_text(POINTER)
    output = tmp_path / "engine"
    finished = build_engine("--checkpoint", checkpoint, "--output", output)
    assert (finished.returncode, finished.stderr.count("\n")) == (1, 1)
    assert "tokenizer.json is a Git LFS pointer" in finished.stderr
    assert not output.exists()

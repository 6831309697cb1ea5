"""An engine folder is whole or not there, holds its weights once, and refuses what does not fit."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny_checkpoints import VARIANTS, make_tiny_checkpoint

from legokv import Engine
from legokv.build.engine import BuildSettings, build_engine_folder, facts_from_checkpoint
from legokv.built import seal
from legokv.built.folder import read_engine_folder, write_engine_folder
from legokv.checkpoint import load_weights, read_model_config
from legokv.checkpoint.fingerprint import model_fingerprint
from legokv.checkpoint.layout import decoder_tensors
from legokv.checkpoint.tensor_table import read_tensor_table
from legokv.errors import EngineMismatch, InvalidRequest, UnsupportedModel
from legokv.model.config import ModelConfig, RopeConfig
from legokv.text.tokenizer import Tokenizer

SETTINGS = BuildSettings("tiny", dtype="float32")


@pytest.fixture
def checkpoint(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A llama checkpoint the test may change."""
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint"))


@pytest.fixture
def engine(checkpoint: Path, tmp_path: Path) -> Path:
    assert build_engine_folder(checkpoint, tmp_path / "engine", SETTINGS)
    return tmp_path / "engine"


def change_facts(engine: Path, **changes: object) -> None:
    facts = json.loads((engine / "engine.json").read_text())
    (engine / "engine.json").write_text(json.dumps(facts | changes))


@pytest.mark.parametrize("name", VARIANTS)
def test_facts_read_back_as_they_were_written(
    name: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    facts = facts_from_checkpoint(tiny_checkpoint(name), BuildSettings(name))
    write_engine_folder(tmp_path / name, facts, tiny_checkpoint(name))
    assert read_engine_folder(tmp_path / name) == facts
    assert facts.model == read_model_config(tiny_checkpoint(name))


def test_weights_are_stored_once_on_the_disk(checkpoint: Path, engine: Path) -> None:
    stored, original = engine / "model.safetensors", checkpoint / "model.safetensors"
    assert stored.samefile(original)


def test_weights_are_copied_where_a_link_is_impossible(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    build_engine_folder(checkpoint, tmp_path / "engine", SETTINGS)
    stored, original = tmp_path / "engine/model.safetensors", checkpoint / "model.safetensors"
    assert stored.read_bytes() == original.read_bytes()
    assert not stored.samefile(original)


def test_a_file_behind_a_symbolic_link_is_linked_itself_whatever_its_name(
    checkpoint: Path, tmp_path: Path
) -> None:
    blob = (checkpoint / "model.safetensors").rename(tmp_path / "0b1ob")
    (checkpoint / "model.safetensors").symlink_to(blob)
    build_engine_folder(checkpoint, tmp_path / "engine", SETTINGS)
    assert not (tmp_path / "engine/model.safetensors").is_symlink()
    assert (tmp_path / "engine/model.safetensors").samefile(blob)


def changed_weights(checkpoint: Path) -> bytes:
    """A whole file of other weights: the last layers' signs are turned."""
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] *= -1
    return save(tensors, {"format": "pt"})


def flip_a_byte(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))


def test_weights_written_over_in_the_checkpoint_are_refused_not_served(
    checkpoint: Path, engine: Path
) -> None:
    file = checkpoint / "model.safetensors"
    content = changed_weights(checkpoint)
    assert len(content) == file.stat().st_size
    file.write_bytes(content)
    before = read_engine_folder(engine).fingerprint
    with pytest.raises(EngineMismatch, match=f"of fingerprint {before[:12]}, its weights or token"):
        Engine.open(engine)
    assert build_engine_folder(checkpoint, engine, SETTINGS)
    assert read_engine_folder(engine).fingerprint != before
    Engine.open(engine)


def test_a_flipped_byte_is_refused_also_if_the_files_time_is_set_back(engine: Path) -> None:
    file = engine / "model.safetensors"
    times = file.stat()
    flip_a_byte(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(EngineMismatch, match="build the engine again"):
        Engine.open(engine)


def test_a_damaged_engine_is_not_up_to_date(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    build_engine_folder(copy, tmp_path / "engine", SETTINGS)
    (copy / "model.safetensors").unlink()  # the engine's file is its own from now on
    flip_a_byte(tmp_path / "engine/model.safetensors")
    assert build_engine_folder(checkpoint, tmp_path / "engine", SETTINGS)
    Engine.open(tmp_path / "engine")


def changed_facts(engine: Path, place: str, value: object) -> None:
    """engine.json with another value at a place that is given with dots."""
    facts = json.loads((engine / "engine.json").read_text())
    inner = facts
    *names, last = place.split(".")
    for name in names:
        inner = inner[name]
    inner[last] = value
    (engine / "engine.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("dtype", ["float32"], "dtype is ['float32'], not a text"),
        ("dtype", "int4", "dtype 'int4', which no engine has"),
        ("page_size", "16", "page_size is '16', not a whole number"),
        ("page_size", True, "page_size is True, not a whole number"),
        ("page_size", 0, "page_size 0, which no engine has"),
        ("model.num_layers", 10**30, "num_layers 1000000000000000000000000000000, which no"),
        ("model.rope.theta", None, "model.rope.theta is None, not a number"),
        ("model.rope.theta", 10**400, "model.rope.theta is 1000"),
        ("model.rope", [], "model.rope is [], not an object"),
        ("model.colour", 1, "model has 'colour', which is no field"),
        ("model.eos_token_ids", [2, "2"], "model.eos_token_ids[1] is '2', not a whole number"),
        ("files", {"a": 1}, "files is {'a': 1}, not a list"),
        ("files", [{"name": "tokenizer.json"}], "files[0] lacks size_bytes"),
        ("files", [{"name": "../x", "size_bytes": 1}], "a file '../x', which no engine has"),
        ("gate.tolerance", "0.1", "gate.tolerance is '0.1', not a number"),
        ("gate.tolerance", float("nan"), "gate.tolerance is nan, not a number"),
        ("plan", 5, "plan is 5, not an object"),
        ("format_version", "\x1b" * 5000, "engine format "),
    ],
)
def test_a_fact_of_another_type_or_no_size_is_refused_with_its_place(
    engine: Path, place: str, value: object, words: str
) -> None:
    changed_facts(engine, place, value)
    with pytest.raises(EngineMismatch, match="build the engine again") as refusal:
        read_engine_folder(engine)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_whole_numbers_stand_for_those_with_a_fraction(engine: Path) -> None:
    changed_facts(engine, "model.rope.theta", 10000)
    assert read_engine_folder(engine).model.rope.theta == 10000.0


def test_a_size_that_was_changed_in_its_facts_is_refused_though_no_file_looks_otherwise(
    engine: Path,
) -> None:
    Engine.open(engine)
    changed_facts(engine, "model.norm_eps", 0.5)
    with pytest.raises(EngineMismatch, match="was built of a model of fingerprint"):
        Engine.open(engine)


def test_weights_are_digested_when_their_files_look_otherwise_and_only_then(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested: list[str] = []

    def counted(*given: Any) -> str:
        digested.append("once more")
        return model_fingerprint(*given)

    monkeypatch.setattr(seal, "model_fingerprint", counted)
    Engine.open(engine)
    assert digested == []
    os.utime(engine / "model.safetensors")
    Engine.open(engine)
    Engine.open(engine)
    assert len(digested) == 1
    Engine.open(shutil.copytree(engine, tmp_path / "elsewhere"))
    assert len(digested) == 2


def test_an_engine_nobody_may_write_to_is_opened_all_the_same(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (engine / "weights.seal").unlink()
    monkeypatch.setattr(seal.tempfile, "mkstemp", read_only)
    Engine.open(engine)
    assert not (engine / "weights.seal").exists()


def test_an_engine_folder_is_itself_a_checkpoint(engine: Path, checkpoint: Path) -> None:
    facts = read_engine_folder(engine)
    assert Tokenizer.open(engine).fingerprint == Tokenizer.open(checkpoint).fingerprint
    again = facts_from_checkpoint(engine, SETTINGS)
    assert again == replace(facts, gate=None)


def test_shards_and_their_index_come_along(tmp_path: Path) -> None:
    sharded = make_tiny_checkpoint("llama", tmp_path / "sharded", max_shard_size="100KB")
    build_engine_folder(sharded, tmp_path / "engine", SETTINGS)
    facts = read_engine_folder(tmp_path / "engine")
    assert len(load_weights(tmp_path / "engine", facts.model, torch.float32)) > 0


def test_the_fingerprint_is_of_the_content_not_of_its_place(
    checkpoint: Path, engine: Path, tmp_path: Path
) -> None:
    original = read_engine_folder(engine).fingerprint
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    sharded = make_tiny_checkpoint("llama", tmp_path / "sharded", max_shard_size="100KB")
    other = BuildSettings("other name", dtype="bfloat16", page_size=32)
    assert facts_from_checkpoint(copy, other).fingerprint == original
    assert facts_from_checkpoint(sharded, SETTINGS).fingerprint == original


def test_the_fingerprint_is_the_same_on_every_machine_and_in_every_process(tmp_path: Path) -> None:
    model = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=8,
        hidden_size=4,
        intermediate_size=6,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_size=2,
        norm_eps=1e-5,
        max_positions=64,
        rope=RopeConfig(theta=10000.0),
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tied_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    sources = [source for tensor in decoder_tensors(model) for source in tensor.sources]
    tensors = {
        source.name: torch.full(source.shape, float(number))
        for number, source in enumerate(sources)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = model_fingerprint(model, read_tensor_table(tmp_path), "a tokenizer's digest")
    # A literal: a change of the encoding orphans every stored chunk, and must be meant.
    assert found == "e970d348db02a3b95ea99e01702c241c97c06376fc82ddad71cb5fa2b18e3d26"


def flip_last_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def edit_json(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return edit


@pytest.mark.parametrize(
    "change",
    [
        flip_last_byte,
        edit_json("config.json", rms_norm_eps=1e-3),
        edit_json("config.json", rope_parameters={"rope_type": "linear", "factor": 2.0}),
        edit_json("tokenizer.json", normalizer={"type": "NFC"}),
    ],
    ids=["weights", "config", "rotary settings", "tokenizer"],
)
def test_the_fingerprint_changes_with(
    change: Callable[[Path], None], checkpoint: Path, engine: Path
) -> None:
    original = read_engine_folder(engine).fingerprint
    change(checkpoint)
    assert facts_from_checkpoint(checkpoint, SETTINGS).fingerprint != original


def test_another_format_version_names_both(engine: Path) -> None:
    change_facts(engine, format_version=99)
    with pytest.raises(EngineMismatch, match="has engine format 99, this legokv reads format 3"):
        read_engine_folder(engine)


def test_a_fact_that_is_missing_is_named(engine: Path) -> None:
    facts = json.loads((engine / "engine.json").read_text())
    del facts["page_size"]
    (engine / "engine.json").write_text(json.dumps(facts))
    with pytest.raises(EngineMismatch, match="page_size"):
        read_engine_folder(engine)


def test_a_missing_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(EngineMismatch, match=r"does not exist: run build/build_engine\.py"):
        read_engine_folder(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_not_an_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineMismatch, match=r"holds no engine\.json"):
        read_engine_folder(tmp_path)


def test_facts_that_are_not_json_are_refused(engine: Path) -> None:
    (engine / "engine.json").write_text("{")
    with pytest.raises(EngineMismatch, match=r"engine\.json is not JSON"):
        read_engine_folder(engine)


def test_a_missing_file_is_named(engine: Path) -> None:
    (engine / "model.safetensors").unlink()
    with pytest.raises(EngineMismatch, match=r"names model\.safetensors"):
        read_engine_folder(engine)


def test_a_file_of_another_size_names_both_sizes(engine: Path) -> None:
    recorded = (engine / "tokenizer.json").stat().st_size
    (engine / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineMismatch, match=f"has 2 bytes, engine.json says {recorded}"):
        read_engine_folder(engine)


def test_a_build_that_fails_leaves_the_old_engine_and_nothing_else(
    checkpoint: Path, engine: Path
) -> None:
    before = read_engine_folder(engine)
    (checkpoint / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError):
        write_engine_folder(engine, before, checkpoint)
    assert read_engine_folder(engine) == before
    assert sorted(path.name for path in engine.parent.iterdir()) == ["checkpoint", "engine"]


def test_an_engine_that_is_up_to_date_is_kept(checkpoint: Path, engine: Path) -> None:
    made = (engine / "engine.json").stat().st_ino
    assert not build_engine_folder(checkpoint, engine, SETTINGS)
    assert (engine / "engine.json").stat().st_ino == made
    assert build_engine_folder(checkpoint, engine, SETTINGS, force=True)


def test_an_engine_of_other_settings_or_damaged_is_replaced(checkpoint: Path, engine: Path) -> None:
    said: list[str] = []
    assert build_engine_folder(
        checkpoint, engine, BuildSettings("tiny", page_size=32), say=said.append
    )
    assert said[0] == (
        f"Replacing {engine}: type float32 becomes bfloat16; page size 16 becomes 32"
    )
    assert read_engine_folder(engine).page_size == 32
    (engine / "config.json").unlink()
    assert build_engine_folder(checkpoint, engine, BuildSettings("tiny", page_size=32))
    assert (engine / "config.json").is_file()


def test_a_folder_that_is_no_engine_is_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(InvalidRequest, match=r"mine exists and holds no engine\.json"):
        build_engine_folder(checkpoint, tmp_path / "mine", SETTINGS, force=True)
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_a_tokenizer_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    definition = json.loads((checkpoint / "tokenizer.json").read_text())
    extra = definition["added_tokens"][0] | {"id": 384, "content": "<|extra|>"}
    definition["added_tokens"].append(extra)
    (checkpoint / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(UnsupportedModel, match="ids up to 384, the model has 384 embedding rows"):
        build_engine_folder(checkpoint, tmp_path / "engine", SETTINGS)


def test_the_tokenizers_end_token_ends_answers_too(checkpoint: Path) -> None:
    edit_json("config.json", eos_token_id=0)(checkpoint)
    edit_json("generation_config.json", eos_token_id=0)(checkpoint)
    assert facts_from_checkpoint(checkpoint, SETTINGS).model.eos_token_ids == (0, 2)

"""An engine is checked when it is built: linked logits are the full ones, or there is no engine."""

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from build_command import build_engine
from paths import ROOT
from safetensors.torch import load_file, save_file

from legokv import Engine, EngineSettings
from legokv.build.engine import BuildSettings, build_engine_folder
from legokv.built.folder import read_engine_folder
from legokv.built.gate_facts import TOLERANCES, GateFacts, check_gate
from legokv.engine import executor, jobs
from legokv.errors import EngineMismatch, NativeLibraryMissing, UnsupportedModel
from legokv.link.link import BoundLink, bind
from legokv.serving.engine_service import EngineService
from legokv.serving.settings import Settings
from legokv.step.sequence import CompiledPages, TokenSequence, chunk_sequence

SOUND = GateFacts(0.01, 0.001, 0.0, 0.3, 0.1)


@pytest.fixture
def overflowing(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint whose hidden states pass float16's largest number, 65504, but not bfloat16's."""
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "overflowing"))
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("down_proj.weight"):
            tensors[name] *= 30000
    save_file(tensors, folder / "model.safetensors")
    return folder


def gate_of(folder: Path) -> GateFacts:
    gate = read_engine_folder(folder).gate
    assert gate is not None
    return gate


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_sound_model_passes_in_each_type_well_within_its_tolerance(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    dtype: str,
    record_property: Callable[[str, object], None],
) -> None:
    settings = BuildSettings(name, dtype=dtype)
    build_engine_folder(tiny_checkpoint(name), tmp_path / "e", settings)
    gate = gate_of(tmp_path / "e")
    assert gate.passed
    # The check would be empty if it compared a thing with itself, or costs could not be seen.
    assert gate.recomputed_difference is not None
    assert 0 < gate.recomputed_difference < gate.tolerance / 2
    assert gate.kl_link_0 is not None
    assert gate.kl_link_0 > 10 * gate.recomputed_difference**2
    record_property("fact", f"gate of {name} in {dtype}: {gate}")


def test_the_attention_that_the_numbers_were_computed_by_is_recorded_and_said(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BuildSettings("e", dtype="bfloat16")
    build_engine_folder(tiny_checkpoint("llama"), tmp_path / "here", settings)
    form = Engine.open(
        tmp_path / "here", settings=EngineSettings(runner="torch")
    ).runner.attention.description
    assert gate_of(tmp_path / "here").attention == form
    assert str(gate_of(tmp_path / "here")).endswith(f"(computed with attention {form})")

    def no_library() -> Path:
        raise NativeLibraryMissing("none here")

    monkeypatch.setattr("legokv.runners.attention_forms.find_native_library", no_library)
    monkeypatch.setattr("legokv.runners.attention_forms.TorchForm.description", "torch, alone")
    build_engine_folder(tiny_checkpoint("llama"), tmp_path / "there", settings)
    assert gate_of(tmp_path / "there").attention == "torch, alone"


def test_an_engine_built_before_its_attention_was_recorded_is_read_and_claims_none(
    tiny_engine_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_engine_folder("llama"), tmp_path / "older"))
    facts = json.loads((folder / "engine.json").read_text())
    del facts["gate"]["attention"]
    (folder / "engine.json").write_text(json.dumps(facts))
    assert gate_of(folder).attention is None
    assert str(gate_of(folder)).endswith("is allowed")


@pytest.mark.parametrize(("num_positions", "page_size"), [(48, 16), (2048, 128)])
def test_a_short_context_and_a_large_page_can_be_checked_too(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, num_positions: int, page_size: int
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = num_positions
    (folder / "config.json").write_text(json.dumps(config))
    settings = BuildSettings("short", dtype="float32", page_size=page_size)
    assert build_engine_folder(folder, tmp_path / "e", settings)


def one_base_off(bound: BoundLink) -> BoundLink:
    """Queries turned by one position too few for every chunk but the first."""
    table = bound.table.copy()
    table[:, 1] += table[:, 1] > 0
    return replace(bound, table=table)


def pages_swapped(bound: BoundLink) -> BoundLink:
    """The first chunk's first two pages in each other's place."""
    table = bound.table.copy()
    table[[0, 1], 0] = table[[1, 0], 0]
    return replace(bound, table=table)


def last_slot_unseen(bound: BoundLink) -> BoundLink:
    """The first page with a slot less than it has."""
    table = bound.table.copy()
    table[0, 3] -= 1
    return replace(bound, table=table)


@pytest.mark.parametrize(
    "broken", [1, 2], ids=["of a document behind its first", "behind the template's head"]
)
def test_a_chunk_compiled_without_what_stands_before_it_is_found(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: int,
) -> None:
    """Of the chunks that are compiled behind others, in order, the one of this number is not."""
    numbers = count()

    def alone(
        token_ids: tuple[int, ...],
        pages: list[int],
        page_size: int,
        before: Sequence[CompiledPages],
    ) -> TokenSequence:
        sequence = chunk_sequence(token_ids, pages, page_size, before)
        if before and next(numbers) == broken:
            sequence.table = sequence.table[-len(pages) :]
        return sequence

    monkeypatch.setattr(executor, "chunk_sequence", alone)
    settings = BuildSettings("tiny", dtype="bfloat16")
    build_engine_folder(tiny_checkpoint("llama"), tmp_path / "e", settings, keep_failed=True)
    found = gate_of(tmp_path / "e")
    assert found.one_chunk_difference is not None
    assert found.one_chunk_difference > 0.3
    assert not found.passed


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (one_base_off, "recomputed_difference"),
        (pages_swapped, "one_chunk_difference"),
        (last_slot_unseen, "one_chunk_difference"),
    ],
)
def test_a_fault_in_linking_is_found_and_nothing_is_written(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[BoundLink], BoundLink],
    found: str,
) -> None:
    monkeypatch.setattr(jobs, "bind", lambda *arguments: fault(bind(*arguments)))
    settings = BuildSettings("tiny", dtype="bfloat16")
    with pytest.raises(
        UnsupportedModel, match=r"logits differ by .* 0.25 is allowed \(.*\)\. --keep-f"
    ):
        build_engine_folder(tiny_checkpoint("llama"), tmp_path / "e", settings)
    assert list(tmp_path.iterdir()) == []
    build_engine_folder(tiny_checkpoint("llama"), tmp_path / "e", settings, keep_failed=True)
    difference = getattr(gate_of(tmp_path / "e"), found)
    assert np.isfinite(difference)
    assert difference > 0.3


def test_logits_that_are_not_finite_are_refused_and_the_engine_before_stays(
    overflowing: Path, tmp_path: Path
) -> None:
    output = tmp_path / "e"
    assert build_engine_folder(overflowing, output, BuildSettings("wide"))
    before = (output / "engine.json").read_bytes()
    half = BuildSettings("wide", dtype="float16")
    with pytest.raises(UnsupportedModel, match="recomputed logits differ by what is not finite"):
        build_engine_folder(overflowing, output, half)
    assert (output / "engine.json").read_bytes() == before


def test_a_failed_engine_is_up_to_date_only_for_whom_it_was_kept(
    overflowing: Path, tmp_path: Path
) -> None:
    half = BuildSettings("wide", dtype="float16")
    assert build_engine_folder(overflowing, tmp_path / "e", half, keep_failed=True)
    assert not gate_of(tmp_path / "e").passed
    assert not build_engine_folder(overflowing, tmp_path / "e", half, keep_failed=True)
    with pytest.raises(UnsupportedModel, match="is not linked correctly"):
        build_engine_folder(overflowing, tmp_path / "e", half)


def test_the_script_says_what_was_found_and_keeps_a_failed_engine_where_told(
    overflowing: Path, tmp_path: Path
) -> None:
    options = ("--no-onnx", "--dtype", "float16", "--keep-failed")
    kept = build_engine("--checkpoint", overflowing, "--output", tmp_path / "e", *options)
    assert kept.returncode == 0, kept.stderr
    assert "Linked against full logits: with all chunks recomputed" in kept.stdout
    assert not gate_of(tmp_path / "e").passed


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"recomputed_difference": 0.01, "one_chunk_difference": 0.01}, True),
        ({"recomputed_difference": 0.0101}, False),
        ({"one_chunk_difference": 0.0101}, False),
        ({"recomputed_difference": None}, False),
        ({"one_chunk_difference": None}, False),
        ({"kl_link_0": None, "kl_link_16": 99.0}, True),
    ],
)
def test_only_the_two_exact_checks_are_judged(changes: dict[str, float], passed: bool) -> None:
    gate = replace(SOUND, **changes)
    assert gate.passed == passed
    if passed:
        check_gate(gate, "/e")
    else:
        with pytest.raises(EngineMismatch, match=r"/e failed .* 0.01 is allowed"):
            check_gate(gate, "/e")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recomputed_difference": 1.75}, r"recomputed logits differ by 1\.75, with one chunk by"),
        (None, "was never checked: build the engine again"),
    ],
)
def test_no_server_takes_an_engine_without_a_passed_check(
    tiny_engine_folder: Callable[[], Path],
    tmp_path: Path,
    change: dict[str, float] | None,
    message: str,
) -> None:
    folder = Path(shutil.copytree(tiny_engine_folder(), tmp_path / "e"))
    facts = json.loads((folder / "engine.json").read_text())
    facts["gate"] = None if change is None else facts["gate"] | change
    (folder / "engine.json").write_text(json.dumps(facts))
    with pytest.raises(EngineMismatch, match=message):
        EngineService.open(Settings(engine=folder, cache_dir=tmp_path / "cache"))


def test_the_library_opens_an_engine_that_failed_and_warns_with_the_numbers(
    overflowing: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = BuildSettings("wide", dtype="float16")
    build_engine_folder(overflowing, tmp_path / "e", half, keep_failed=True)
    assert "not linked correctly" not in caplog.text
    Engine.open(tmp_path / "e", settings=EngineSettings(pool_tokens=64))
    assert "recomputed logits differ by what is not finite" in caplog.text


def test_a_folder_of_an_older_format_says_the_command_that_builds_it_again(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "e"
    made = BuildSettings("old one", dtype="float32", page_size=32)
    build_engine_folder(tiny_checkpoint("qwen3"), folder, made)
    wanted = read_engine_folder(folder)
    facts = json.loads((folder / "engine.json").read_text())
    del facts["gate"]
    (folder / "engine.json").write_text(json.dumps(facts | {"format_version": 2}))
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(EngineMismatch, match="engine format 2, this legokv reads format 3") as old:
        read_engine_folder(folder)
    script, *arguments = shlex.split(str(old.value).split(" with ")[-1])
    assert (ROOT / script).is_file()
    assert build_engine(*arguments, "--no-onnx").returncode == 0
    again = read_engine_folder(folder)
    assert replace(again, gate=None) == replace(wanted, gate=None)
    assert gate_of(folder).passed
    # A build does not take the older folder for one that is up to date.
    assert build_engine_folder(tiny_checkpoint("qwen3"), tmp_path / "other", made)
    assert read_engine_folder(tmp_path / "other") == wanted


def test_a_difference_just_past_the_tolerance_is_not_shown_as_the_tolerance() -> None:
    gate = GateFacts(0.05, 0.0500001, 0.012345678, None, None)
    assert not gate.passed
    assert str(gate).startswith("with all chunks recomputed logits differ by 0.0500001, with one")
    assert "chunk by 0.01235 standard deviations; 0.05 is allowed" in str(gate)

"""When a build keeps the plan that is there, and what it says of one that it replaces."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from plan_builds import PLAN, settings_of
from quantised_checkpoints import AUTO_FP8, fp8_checkpoint

from legokv.build import kept
from legokv.build.engine import BuildSettings, build_engine_folder, facts_from_checkpoint, with_plan
from legokv.build.gate import PASSAGES
from legokv.build.kept import AskedPlan, is_up_to_date, kept_plan, replacement
from legokv.built.folder import read_engine_folder
from legokv.built.plan_limits import PlanLimits
from legokv.runners import opening

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")
Built = Callable[..., tuple[Path, str]]


def test_auto_keeps_a_plan_that_is_there_and_torch_by_name_replaces_it_and_says_so(
    built: Built, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint("llama-wide")
    engine = Path(shutil.copytree(built()[0], tmp_path / "engine"))
    before = (engine / "engine.json").read_bytes()
    said: list[str] = []
    auto = BuildSettings("llama-wide", exports_onnx=True, any_plan=True)
    assert not build_engine_folder(checkpoint, engine, auto, say=said.append)
    assert (engine / "engine.json").read_bytes() == before
    assert f"{engine} has {PLAN} (tensorrt-rtx " in said[0]
    assert "auto keeps: a --backend by name, or --force, replaces it" in said[0]

    other = replace(auto, page_size=32)
    assert build_engine_folder(checkpoint, engine, other, say=said.append)
    assert f"Replacing {engine}: backend tensorrt-rtx becomes torch; page size 16" in said[1]

    again = Path(shutil.copytree(built()[0], tmp_path / "again"))
    torch = replace(auto, any_plan=False)
    assert build_engine_folder(checkpoint, again, torch, say=said.append)
    assert any(f"Replacing {again}: backend tensorrt-rtx becomes torch; plan {PLAN}" in line
               for line in said)  # fmt: skip
    assert not (again / PLAN).exists()


def test_auto_that_builds_no_plan_keeps_one_of_the_few_bits_of_its_checkpoint(
    plugin_library: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    # Whose inputs have no scales: the plan's calibration is found again.
    config = AUTO_FP8 | {"activation_scheme": "dynamic"}
    checkpoint = fp8_checkpoint(tiny_checkpoint("llama-wide"), tmp_path / "fp8", config, None)
    engine, small = tmp_path / "engine", PlanLimits(64, 2, 4)
    few = replace(settings_of("llama-wide", plugin_library), weights="qdq-fp8", samples=PASSAGES)
    build_engine_folder(checkpoint, engine, replace(few, limits=small, exports_onnx=True))
    before = (engine / "engine.json").read_bytes()
    said: list[str] = []
    auto = BuildSettings("llama-wide", exports_onnx=True, any_plan=True, as_stored=True)
    assert not build_engine_folder(checkpoint, engine, auto, say=said.append)
    assert (engine / "engine.json").read_bytes() == before
    assert f"{engine} has {PLAN} (tensorrt-rtx " in said[-1]
    # Asked for whole weights, or of another page size, it is replaced.
    for other in (replace(auto, page_size=32), replace(auto, as_stored=False)):
        copy = Path(shutil.copytree(engine, tmp_path / f"{other.page_size}"))
        assert build_engine_folder(checkpoint, copy, other, say=said.append)
        facts = read_engine_folder(copy)
        assert (facts.weights, facts.backend, facts.plan) == ("model", "torch", None)


def test_with_a_gpu_auto_keeps_a_plan_only_if_it_runs_there_and_is_as_asked(
    built: Built,
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, _ = built()
    asked = settings_of("llama-wide", plugin_library)
    own = facts_from_checkpoint(tiny_checkpoint("llama-wide"), asked)
    facts = replace(own, backend="tensorrt")
    keep = partial(kept_plan, output, facts, [PLAN], keep_failed=False)
    plan = AskedPlan(asked.limits, "stream", ())
    assert keep(plan)
    assert keep(replace(plan, imports="plugin")) is None
    assert keep(replace(plan, flags=("refit",))) is None
    assert keep(replace(plan, limits=replace(asked.limits, max_sequences=6))) is None
    for module in (kept, opening):
        monkeypatch.setattr(module, "gpu_architecture", lambda *number: "sm_90")
    assert keep(plan)
    monkeypatch.setattr(opening, "backend_version", lambda name: "0.0")
    assert keep(plan) is None


def test_a_plan_by_older_code_opens_as_before_and_is_another_than_one_with_a_scoring_plan(
    built: Built, plugin_library: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    engine = Path(shutil.copytree(built()[0], tmp_path / "engine"))
    asked = settings_of("llama-wide", plugin_library)
    facts = facts_from_checkpoint(tiny_checkpoint("llama-wide"), asked)
    planned, names = with_plan(facts, asked, plugin_library), [PLAN]
    limits = AskedPlan(asked.limits, "stream", ())
    other = replace(facts, backend="tensorrt")
    assert kept_plan(engine, other, names, limits, keep_failed=False)
    assert is_up_to_date(engine, planned, names, keep_failed=False)

    written = json.loads((engine / "engine.json").read_text())
    for name in ("scoring_file", "scoring_layers"):
        del written["plan"][name]
    old = [each for each in written["produced"] if "scoring" not in each["name"]]
    (engine / "engine.json").write_text(json.dumps(written | {"produced": old}))
    plan = read_engine_folder(engine).plan
    assert plan is not None
    assert (plan.scoring_file, plan.scoring_layers) == ("", ())
    assert kept_plan(engine, other, names, limits, keep_failed=False) is None
    assert not is_up_to_date(engine, planned, names, keep_failed=False)
    words = replacement(engine, planned)
    assert re.search(r" without a plan of the scoring pass.* becomes .* with a plan of the", words)


def test_a_plan_of_autos_own_backend_is_kept_only_with_the_plugins_of_the_present_sources(
    built: Built, plugin_library: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    engine, checkpoint = built()[0], tiny_checkpoint("llama-wide")
    auto = replace(settings_of("llama-wide", plugin_library), any_plan=True)
    assert not build_engine_folder(checkpoint, engine, auto)
    changed = Path(shutil.copyfile(plugin_library, tmp_path / "changed.so"))
    with changed.open("ab") as file:
        file.write(b"another build's bytes")
    facts = facts_from_checkpoint(checkpoint, auto)
    planned = with_plan(facts, auto, changed)
    asked = AskedPlan(auto.limits, "stream", ())
    assert kept_plan(engine, facts, [PLAN], asked, keep_failed=False) is None
    assert not is_up_to_date(engine, planned, [PLAN], keep_failed=False)

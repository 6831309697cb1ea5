"""What `make gpu` promises, as far as a machine without a GPU can hold it to that."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT

from legokv.kernels.build_gpu import PluginBuild, build_host_kernels

BENCHMARK = ROOT / "benchmarks" / "gpu"
PATHS = os.pathsep.join(str(ROOT / part) for part in ("src", "tests", "benchmarks/gpu"))
WITHOUT_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PATHS}
# As `make gpu` runs them: without the fixtures of the other tests, which import transformers.
ALONE = ("-q", "-p", "no:cacheprovider", "--confcutdir", "tests/gpu")


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARK)
    import stages

    return stages


@pytest.fixture
def stage_list(stages: ModuleType) -> ModuleType:
    import stage_list

    return stage_list


def run(*command: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=WITHOUT_GPU,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_gpu_every_stage_says_so_and_the_run_fails(tmp_path: Path) -> None:
    finished = run(BENCHMARK, "--output", tmp_path)
    assert finished.returncode == 1
    report = json.loads((tmp_path / "report.json").read_text())
    ended = {stage["name"]: (stage["ended"], stage["detail"]) for stage in report["stages"]}
    assert ended.pop("machine")[0] == "ok"
    assert set(ended.values()) == {("not run", "torch finds no NVIDIA GPU")}
    assert report["machine"]["torch"].startswith(torch.__version__)
    assert "| kernels | not run |" in finished.stdout


def test_a_stage_past_its_limit_is_ended_with_what_it_started(
    stages: ModuleType, tmp_path: Path
) -> None:
    child = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    stage = stages.Stage("slow", [sys.executable, "-c", child], limit_seconds=2.0)
    started = time.monotonic()
    result = stages.run_stage(stage, tmp_path / "log", {}, left=100.0)
    assert (result.ended, result.detail) == ("timed out", "begun\n")
    assert time.monotonic() - started < 50


def test_a_stage_gets_no_more_than_what_is_left_of_the_whole(
    stages: ModuleType, tmp_path: Path
) -> None:
    stage = stages.Stage("late", [sys.executable, "-c", ""], limit_seconds=60.0)
    result = stages.run_stage(stage, tmp_path / "log", {}, left=-1.0)
    assert (result.ended, result.detail) == ("not run", "no time was left for it")


def test_a_failed_stage_leaves_its_last_words(stages: ModuleType, tmp_path: Path) -> None:
    stage = stages.Stage("bad", [sys.executable, "-c", "raise SystemExit('no')"], 60.0)
    result = stages.run_stage(stage, tmp_path / "log", {}, left=60.0)
    assert (result.ended, result.detail) == ("failed", "no\n")


def test_what_is_planned_fits_in_ten_minutes_and_each_stage_in_its_own_limit(
    stage_list: ModuleType, tmp_path: Path
) -> None:
    import measure

    planned = stage_list.PLANNED
    assert sum(planned.values()) <= 600
    assert planned.keys() == stage_list.LIMITS.keys()
    assert all(seconds <= stage_list.LIMITS[name] for name, seconds in planned.items())
    assert stage_list.LIMITS["machine"] == 90
    assert measure.SHARES.keys() == measure.MEASUREMENTS.keys()
    assert sum(measure.SHARES.values()) <= planned["measurements"]
    here = stage_list.Run(tmp_path, tmp_path, dry_run=True, commit="")
    later = [stage.name for stage in stage_list.later_stages(here, {}, {"path": "some.so"})]
    # What says the most comes first; what a sanitizer or a carried engine says, last.
    assert ["machine", "library", *later] == list(planned)


def test_a_machine_stage_that_ran_out_of_time_keeps_nothing_from_being_tried(
    stage_list: ModuleType, tmp_path: Path
) -> None:
    here = stage_list.Run(tmp_path, tmp_path, dry_run=False, commit="")
    assert stage_list.library_stage(here, {}).not_run is None
    later = stage_list.later_stages(here, {}, {"path": "some.so"})
    tried = {stage.name for stage in later if stage.not_run is None}
    assert {"smoke", "measurements", "kernels", "system"} <= tried
    assert stage_list.library_stage(here, {"device": None}).not_run == stage_list.NO_GPU


def test_a_carried_library_is_taken_if_it_is_of_these_sources_and_this_gpu(
    stages: ModuleType, tmp_path: Path
) -> None:
    import library

    build = library.launcher_build("90")
    assert build.with_plugins is False
    assert library.unfit(tmp_path, build).endswith("has no library with its sources.sha256")
    made = tmp_path / library.LIBRARY_NAME
    made.write_bytes(b"")
    digest = tmp_path / library.DIGEST_FILE
    digest.write_text("00 90-real")
    assert library.unfit(tmp_path, build).endswith("is of other sources")
    digest.write_text(f"{library.source_digest(library.SOURCE)} 80-real")
    assert library.unfit(tmp_path, build).endswith("is for 80-real, not 90-real")
    digest.write_text(f"{library.source_digest(library.SOURCE)} 90-real\n")
    assert library.carried_or_built(build, tmp_path) == (
        made,
        "carried here, made of these sources",
    )


def test_a_report_stays_under_a_mebibyte(stages: ModuleType, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_run", BENCHMARK / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    run_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_module)
    report = run_module.Report(tmp_path, dry_run=True)
    for number in range(12):
        report.add(stages.StageResult(f"stage {number}", "ok", 1.0, 2.0, "x" * 120_000))
    assert (tmp_path / "report.json").stat().st_size < 2**20
    assert len(json.loads((tmp_path / "report.json").read_text())["stages"]) == 12


def test_what_a_stage_lacks_is_named(stage_list: ModuleType, tmp_path: Path) -> None:
    here = stage_list.Run(tmp_path, tmp_path, dry_run=False, commit="")
    machine = {"device": {"name": "some GPU"}, "missing": ["pytest"], "absent": []}
    machine |= {"compute_sanitizer": None, "ncu": None}
    later = stage_list.later_stages(here, machine, {"path": "some.so"})
    reasons = {stage.name: stage.not_run for stage in later}
    assert reasons["kernels"] == "pytest is not installed: pip install pytest"
    assert reasons["measurements"] is None
    later = stage_list.later_stages(here, machine | {"missing": []}, {"path": "some.so"})
    reasons = {stage.name: stage.not_run for stage in later}
    assert reasons["kernels"] is None
    assert reasons["real model"] == "out/engines/llama was not carried here"
    for tool in ("memcheck", "racecheck", "synccheck"):
        assert reasons[tool] == "compute-sanitizer is not installed: it is in the CUDA toolkit"
    assert reasons["profile"] == "ncu is not installed: it is in the CUDA toolkit"


# Notes how it was called, then runs what it was given.
SANITIZER = """#!/bin/sh
echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $1 $2 $3 $4"
shift 4
exec "$@"
"""


def test_the_sanitizer_runs_every_kernel_once_and_fails_on_what_it_finds(
    stages: ModuleType, stage_list: ModuleType, tmp_path: Path
) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER)
    program.chmod(0o755)
    run_here = stage_list.Run(ROOT, tmp_path, dry_run=False, commit="")
    machine = {"device": {"name": "G"}, "missing": [], "compute_sanitizer": str(program)}
    later = stage_list.later_stages(run_here, machine, {"path": "some.so"})
    stage = next(stage for stage in later if stage.name == "memcheck")
    assert stage.not_run is None
    here = ["--host-form" if word == "--require-gpu" else word for word in stage.command]
    result = stages.run_stage(
        replace(stage, command=here, limit_seconds=600.0), tmp_path / "log", WITHOUT_GPU, 600.0
    )
    assert result.ended == "ok", result.detail
    said = (tmp_path / "log").read_text()
    assert said.startswith("1 --tool memcheck --error-exitcode 1\n")
    assert "13 passed" in said


def test_under_require_gpu_a_skip_is_a_failure() -> None:
    command = ("-m", "pytest", *ALONE, "tests/gpu/test_kv_import.py")
    finished = run(*command, "--require-gpu")
    assert finished.returncode == 1
    assert "which --require-gpu forbids: Skipped: no NVIDIA GPU" in finished.stdout


def test_the_gpu_tests_themselves_run_over_the_kernels_host_form() -> None:
    few = "one_token and 16-bfloat16 or several-splits or outside"
    finished = run("-m", "pytest", *ALONE, "tests/gpu", "--host-form", "-k", few)
    assert finished.returncode == 0, finished.stdout
    assert " passed" in finished.stdout


@pytest.fixture(scope="module")
def host_library() -> Path:
    folder = build_host_kernels(PluginBuild(ROOT / "out"), print)
    return folder / "liblegokv_host_kernels.so"


def test_all_measurements_run_in_one_process_on_a_cpu_at_tiny_sizes(
    stages: ModuleType, host_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import measure

    output = tmp_path / "out.json"
    options = ["--library", str(host_library), "--output", str(output), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["measure.py", *options])
    measure.main()
    measured = json.loads(output.read_text())
    assert (measured["failed"], measured["left_out"]) == ({}, [])
    steps = {step["step"]: step for step in measured["attention"]}
    worst = max(d for step in steps.values() for d in step["max_difference_to_sdpa"].values())
    assert worst < 2.5e-2
    assert {name.split()[0] for name in steps} == {"compile", "link", "decode"}
    mixed = [step for name, step in steps.items() if " and " in name]
    assert [list(step["seconds"]) for step in mixed] == [
        ["auto", "auto shared tiles", "split", "tiled"],
        ["auto", "split", "tiled"],
    ]
    shared = [list(step["seconds"]) for name, step in steps.items() if " shared" in name]
    assert all(forms[:2] == ["auto", "auto shared tiles"] for forms in shared)
    assert all(step["logits_are_finite"] for step in measured["step"])
    assert {each["source"] for each in measured["import"]} >= {"from device", "runner, pinned"}


def test_one_measurement_that_fails_leaves_the_others(
    stages: ModuleType, host_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import measure

    def fails(session: object) -> Iterator[dict[str, object]]:
        yield {"step": "first"}
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(
        measure, "MEASUREMENTS", {"attention": fails, "ceilings": measure.MEASUREMENTS["ceilings"]}
    )
    output = tmp_path / "out.json"
    options = ["--library", str(host_library), "--output", str(output), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["measure.py", *options, "--only", "attention", "ceilings"])
    with pytest.raises(SystemExit):
        measure.main()
    measured = json.loads(output.read_text())
    assert measured["attention"] == [{"step": "first"}]
    assert measured["failed"] == {"attention": "RuntimeError: an illegal memory access"}
    assert len(measured["ceilings"]) == 1

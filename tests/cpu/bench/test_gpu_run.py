"""What `make gpu` promises, as far as a machine without a GPU can hold it to that."""

import json
import os
import subprocess
import sys
import time
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
    assert time.monotonic() - started < 20


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


def test_the_limits_fit_in_ten_minutes(stage_list: ModuleType) -> None:
    assert sum(stage_list.LIMITS.values()) <= 600


def test_what_a_stage_lacks_is_named(stage_list: ModuleType, tmp_path: Path) -> None:
    here = stage_list.Run(tmp_path, tmp_path, dry_run=False, commit="")
    machine = {"device": {"name": "some GPU"}, "missing": ["pytest"], "absent": []}
    later = stage_list.later_stages(here, machine, {"path": "some.so"})
    reasons = {stage.name: stage.not_run for stage in later}
    assert reasons["kernels"] == "pytest is not installed: pip install pytest"
    assert reasons["attention"] is None
    later = stage_list.later_stages(here, machine | {"missing": []}, {"path": "some.so"})
    reasons = {stage.name: stage.not_run for stage in later}
    assert reasons["kernels"] is None
    assert reasons["real model"] == "out/engines/llama was not carried here"
    assert reasons["sanitizer"] == "compute-sanitizer is not installed: it is in the CUDA toolkit"


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
    stage = next(stage for stage in later if stage.name == "sanitizer")
    assert stage.not_run is None
    here = ["--host-form" if word == "--require-gpu" else word for word in stage.command]
    result = stages.run_stage(replace(stage, command=here), tmp_path / "log", WITHOUT_GPU, 600.0)
    assert result.ended == "ok", result.detail
    said = (tmp_path / "log").read_text()
    assert said.startswith("1 --tool memcheck --error-exitcode 1\n")
    assert "9 passed" in said


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


@pytest.mark.parametrize("name", ["ceilings", "import", "attention", "step"])
def test_a_measurement_runs_on_a_cpu_at_tiny_sizes(
    stages: ModuleType,
    host_library: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import measure

    output = tmp_path / "out.json"
    options = ["--library", str(host_library), "--output", str(output), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["measure.py", name, *options])
    measure.main()
    measured = json.loads(output.read_text())
    if name == "attention":
        worst = max(d for step in measured for d in step["max_difference_to_sdpa"].values())
        assert worst < 2.5e-2
    if name == "step":
        assert all(step["logits_are_finite"] for step in measured)

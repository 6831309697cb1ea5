"""Which stages a GPU run has, in what order, for how long, and what each cannot do without."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import about_machine
from stages import PROFILED, Stage

# Seconds that each is planned to take on a GPU, together ten minutes at most, and when it is ended.
PLANNED = {
    "machine": 40,
    "library": 15,
    "smoke": 25,
    "measurements": 225,
    "profile": 40,
    "kernels": 60,
    "system": 20,
    "memcheck": 40,
    "racecheck": 40,
    "synccheck": 40,
    "real model": 25,
    "plans": 25,
}
LIMITS = {
    "machine": 90,
    "library": 150,
    "smoke": 90,
    "measurements": 250,
    "profile": 70,
    "kernels": 110,
    "system": 60,
    "memcheck": 70,
    "racecheck": 60,
    "synccheck": 60,
    "real model": 40,
    "plans": 60,
}
NO_GPU = "torch finds no NVIDIA GPU"
NO_LIBRARY = "there is no library of the kernels"
NO_DRY_RUN = "a dry run has no GPU to check"
SMOKE_TESTS = ("test_smoke.py",)
KERNEL_TESTS = (
    "test_kv_import.py",
    "test_attention_kernels.py",
    "test_link_graphs.py",
    "test_long_attention.py",
)
SYSTEM_TESTS = ("test_system.py", "test_import_stream.py")
# Every kernel once or more, in few calls: the sanitizer takes a hundred times as long.
CHECKED = (
    "one_token and 16-bfloat16 or one_token and 16-float32 or several-splits or outside "
    "or shared_tiles and 128-"
)
ENGINE = "out/engines/llama"
PLANS = "out/engines/*/tensorrt-rtx.plan"


@dataclass(frozen=True)
class Run:
    """Where the repository and the results are; `dry_run` means on a CPU."""

    root: Path
    output: Path
    dry_run: bool
    commit: str

    def script(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(self.root / "benchmarks" / "gpu" / name), *arguments]

    def written(self, name: str) -> str:
        return str(self.output / f"{name}.json")


def machine_stage(run: Run) -> Stage:
    command = run.script("about_machine.py", run.written("machine"), run.commit)
    return Stage("machine", command, LIMITS["machine"])


def library_stage(run: Run, facts: dict[str, Any]) -> Stage:
    command = run.script("library.py", run.written("library"))
    if run.dry_run:
        command.append("--host-form")
    return Stage("library", command, LIMITS["library"], _no_gpu(run, facts))


def later_stages(run: Run, facts: dict[str, Any], library: Any) -> list[Stage]:
    """Smoke, measurements, then tests; all are left out if there is no GPU or no library.

    `facts` are empty where the machine's stage ran out of time: then it is tried what there is.
    """
    reason = _no_gpu(run, facts) or (NO_LIBRARY if library is None else None)
    path = "" if library is None else library["path"]
    no_pytest = "pytest" in facts.get("missing", ())
    untestable = reason or ("pytest is not installed: pip install pytest" if no_pytest else None)
    no_engine = None if (run.root / ENGINE).is_dir() else f"{ENGINE} was not carried here"
    no_plan = None if list(run.root.glob(PLANS)) else f"no {PLANS} was carried here"
    no_plan = no_plan or _absent(facts, "tensorrt_rtx_bindings")
    no_real_model = untestable or no_engine or _absent(facts, "safetensors")
    checks = [
        _sanitizer(run, facts, tool, untestable) for tool in ("memcheck", "racecheck", "synccheck")
    ]
    return [
        _tests(run, "smoke", SMOKE_TESTS, untestable),
        _measurements(run, path, reason),
        _profile(run, facts, path, reason),
        _kernel_tests(run, untestable),
        _tests(run, "system", SYSTEM_TESTS, untestable),
        *checks,
        _tests(run, "real model", ("test_real_model.py",), no_real_model),
        _tests(run, "plans", ("test_opened_plans.py",), untestable or no_plan),
    ]


def _tests(run: Run, name: str, files: Sequence[str], not_run: str | None) -> Stage:
    folder = run.root / "tests" / "gpu"
    mode = "--host-form" if run.dry_run else "--require-gpu"
    command = [sys.executable, "-m", "pytest", mode, "-q", "-rxfE", "-p", "no:cacheprovider"]
    # The tests' general conftest wants transformers, which a GPU machine may lack.
    command += ["--confcutdir", str(folder), "--rootdir", str(run.root)]
    command += ["-p", "recorded_facts"]
    command += [str(folder / file) for file in files]
    return Stage(name, command, LIMITS[name], not_run)


def _kernel_tests(run: Run, not_run: str | None) -> Stage:
    """All of them; in a dry run few, as the host form takes minutes for the rest."""
    tests = _tests(run, "kernels", KERNEL_TESTS, not_run)
    return replace(tests, command=[*tests.command, "-k", CHECKED]) if run.dry_run else tests


def _sanitizer(run: Run, facts: dict[str, Any], tool: str, not_run: str | None) -> Stage:
    """A few of the kernels' tests under one of its tools, every tensor an allocation of its own."""
    program = _program(facts, "compute_sanitizer", "compute-sanitizer")
    missing = None if program else "compute-sanitizer is not installed: it is in the CUDA toolkit"
    tests = _tests(run, tool, KERNEL_TESTS, not_run or (NO_DRY_RUN if run.dry_run else missing))
    checked = [str(program), "--tool", tool, "--error-exitcode", "1", *tests.command]
    apart = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
    return replace(tests, command=[*apart, *checked, "-k", CHECKED])


def _measurements(run: Run, library: str, not_run: str | None) -> Stage:
    options = ["--library", library, "--output", run.written("measured"), "--device", _device(run)]
    return Stage(
        "measurements", run.script("measure.py", *options), LIMITS["measurements"], not_run
    )


def _profile(run: Run, facts: dict[str, Any], library: str, not_run: str | None) -> Stage:
    """Three kernels under ncu, its pages in the stage's words; a dry run calls them without it."""
    call = run.script("one_call.py", "--library", library, "--device", _device(run))
    stage = Stage("profile", call, LIMITS["profile"], not_run, kept_characters=120_000)
    if run.dry_run:
        return stage
    ncu = _program(facts, "ncu", "ncu")
    if ncu is None:
        return replace(stage, not_run=not_run or "ncu is not installed: it is in the CUDA toolkit")
    chosen = f"regex:{'|'.join(PROFILED)}"
    options = ["--clock-control", "none", "--set", "full", "--launch-count", "3"]
    return replace(stage, command=[ncu, *options, "--kernel-name", chosen, *call])


def _device(run: Run) -> str:
    return "cpu" if run.dry_run else "cuda"


def _no_gpu(run: Run, facts: dict[str, Any]) -> str | None:
    return None if run.dry_run or not facts or facts.get("device") else NO_GPU


def _program(facts: dict[str, Any], fact: str, name: str) -> str | None:
    found: str | None = facts[fact] if fact in facts else about_machine.program(name)
    return found


def _absent(facts: dict[str, Any], module: str) -> str | None:
    absent = [line for line in facts.get("absent", ()) if line.startswith(module)]
    return f"{absent[0]} without it" if absent else None

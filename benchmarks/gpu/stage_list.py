"""Which stages a GPU run has, in what order, for how long, and what each cannot do without."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages import Stage

MEASURED = ("ceilings", "attention", "import", "step")
# Seconds. Together they fit in ten minutes.
LIMITS = {
    "machine": 15,
    "library": 150,
    "kernels": 110,
    "sanitizer": 70,
    "system": 60,
    "real model": 40,
    "plans": 60,
    "ceilings": 15,
    "attention": 40,
    "import": 15,
    "step": 25,
}
NO_GPU = "torch finds no NVIDIA GPU"
NO_LIBRARY = "there is no plugin library"
KERNEL_TESTS = ("test_kv_import.py", "test_attention_kernels.py", "test_long_attention.py")
# Every kernel once or more, in few calls: the sanitizer takes a hundred times as long.
CHECKED = "one_token and 16-bfloat16 or one_token and 16-float32 or several-splits or outside"
SANITIZER = "compute-sanitizer"
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
    command = run.script("machine.py", run.written("machine"), run.commit)
    return Stage("machine", command, LIMITS["machine"])


def library_stage(run: Run, machine: dict[str, Any]) -> Stage:
    command = run.script("library.py", run.written("library"))
    if run.dry_run:
        command.append("--host-form")
    return Stage("library", command, LIMITS["library"], _no_gpu(run, machine))


def later_stages(run: Run, machine: dict[str, Any], library: Any) -> list[Stage]:
    """Tests, then measurements; all are left out if there is no GPU or no library."""
    reason = _no_gpu(run, machine) or (NO_LIBRARY if library is None else None)
    no_pytest = "pytest" in machine.get("missing", ())
    untestable = reason or ("pytest is not installed: pip install pytest" if no_pytest else None)
    no_engine = None if (run.root / ENGINE).is_dir() else f"{ENGINE} was not carried here"
    no_plan = None if list(run.root.glob(PLANS)) else f"no {PLANS} was carried here"
    no_plan = no_plan or _absent(machine, "tensorrt_rtx_bindings")
    no_safetensors = _absent(machine, "safetensors")
    stages = [
        _tests(run, "kernels", KERNEL_TESTS, untestable),
        _sanitizer(run, machine, untestable),
        _tests(run, "system", ("test_system.py",), untestable),
        _tests(
            run, "real model", ("test_real_model.py",), untestable or no_engine or no_safetensors
        ),
        _tests(run, "plans", ("test_opened_plans.py",), untestable or no_plan),
    ]
    if library is None:
        return [*stages, *(Stage(name, (), LIMITS[name], reason) for name in MEASURED)]
    return [*stages, *(_measurement(run, name, library["path"], reason) for name in MEASURED)]


def _tests(run: Run, name: str, files: Sequence[str], not_run: str | None) -> Stage:
    folder = run.root / "tests" / "gpu"
    mode = "--host-form" if run.dry_run else "--require-gpu"
    junit = run.output / f"{name.replace(' ', '-')}.xml"
    command = [sys.executable, "-m", "pytest", mode, "-q", "-rxfE", "-p", "no:cacheprovider"]
    # The tests' general conftest wants transformers, which a GPU machine may lack.
    command += ["--confcutdir", str(folder), "--rootdir", str(run.root), f"--junitxml={junit}"]
    command += ["-p", "recorded_facts"]
    command += [str(folder / file) for file in files]
    return Stage(name, command, LIMITS[name], not_run)


def _sanitizer(run: Run, machine: dict[str, Any], not_run: str | None) -> Stage:
    """A few of the kernels' tests under memcheck, every tensor an allocation of its own."""
    name, program = "sanitizer", machine.get("compute_sanitizer")
    missing = None if program else f"{SANITIZER} is not installed: it is in the CUDA toolkit"
    on_a_cpu = "a dry run has no GPU to check" if run.dry_run else None
    tests = _tests(run, name, KERNEL_TESTS, not_run or missing or on_a_cpu)
    checked = [str(program), "--tool", "memcheck", "--error-exitcode", "1", *tests.command]
    apart = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
    return replace(tests, command=[*apart, *checked, "-k", CHECKED])


def _measurement(run: Run, name: str, library: str, not_run: str | None) -> Stage:
    device = "cpu" if run.dry_run else "cuda"
    options = ["--library", library, "--output", run.written(name), "--device", device]
    return Stage(name, run.script("measure.py", name, *options), LIMITS[name], not_run)


def _no_gpu(run: Run, machine: dict[str, Any]) -> str | None:
    return None if run.dry_run or machine.get("device") else NO_GPU


def _absent(machine: dict[str, Any], module: str) -> str | None:
    absent = [line for line in machine.get("absent", ()) if line.startswith(module)]
    return f"{absent[0]} without it" if absent else None

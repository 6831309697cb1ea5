"""Everything there is to try on an NVIDIA GPU, in ten minutes: what `make gpu` runs.

A smoke of every kernel, all measurements at the shape of an 8-billion Llama, a profile, the tests
in tests/gpu, the sanitizer's checks. Each stage is a process with its own time limit; the report,
written after each, keeps what the others found. --dry-run tries it all on a CPU with tiny sizes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from report import report_text
from stage_list import Run, later_stages, library_stage, machine_stage
from stages import Stage, StageResult, run_stage

ROOT = Path(__file__).resolve().parents[2]
TOTAL_SECONDS = 600
# What comes back from such a machine is small.
MOST_BYTES = 2**20


class Report:
    """report.json, complete after every stage."""

    def __init__(self, folder: Path, dry_run: bool) -> None:
        self._folder = folder
        self._facts = {
            "command": " ".join(sys.orig_argv),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "dry_run": dry_run,
        }
        self.results: list[StageResult] = []

    def add(self, result: StageResult) -> None:
        self.results.append(result)
        text = json.dumps(self.data())
        if len(text) > MOST_BYTES:
            short = {"stages": [asdict(replace(each, detail="")) for each in self.results]}
            text = json.dumps(self.data() | short)
        (self._folder / "report.json").write_text(text)

    def data(self) -> dict[str, Any]:
        return {
            **self._facts,
            "machine": self.read("machine"),
            "library": self.read("library"),
            "stages": [asdict(result) for result in self.results],
            "measured": self.read("measured") or {},
        }

    def read(self, name: str) -> Any:
        """What a stage wrote; None if it wrote nothing."""
        path = self._folder / f"{name}.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            # Not written, or by a stage that was ended while it wrote.
            return None

    @property
    def exit_status(self) -> int:
        """0 if kernels were run and nothing went wrong; what was left out has its reason."""
        wrong = [each for each in self.results if each.ended in ("failed", "timed out")]
        return 1 if wrong or self.read("library") is None else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, tiny sizes")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "gpu")
    arguments = parser.parse_args()
    run = Run(ROOT, arguments.output, arguments.dry_run, commit())
    empty(arguments.output)
    report = Report(arguments.output, arguments.dry_run)
    run_all(run, report)
    print(f"\n{report_text(report.data())}\n\n{arguments.output / 'report.json'}")
    return report.exit_status


def run_all(run: Run, report: Report) -> None:
    """The stages in order; without a GPU only the first, which says so."""
    deadline = time.monotonic() + TOTAL_SECONDS
    paths = [str(run.root / part) for part in ("src", "tests", "benchmarks/gpu")]
    # Where there is no network, what can't be fetched must fail soon.
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PIP_RETRIES": "1",
        "PIP_DEFAULT_TIMEOUT": "10",
    }

    def one(stage: Stage) -> None:
        print(f"{stage.name} …", flush=True)
        log = run.output / f"{stage.name.replace(' ', '-')}.log"
        result = run_stage(stage, log, environment, deadline - time.monotonic())
        report.add(result)
        why = result.detail if result.ended == "not run" else f"{result.seconds:.0f} s"
        print(f"{stage.name}: {result.ended}, {why}", flush=True)

    one(machine_stage(run))
    machine = report.read("machine") or {}
    one(library_stage(run, machine))
    library = report.read("library")
    if library is not None:
        environment["LEGOKV_PLUGIN_LIBRARY"] = library["path"]
    for stage in later_stages(run, machine, library):
        one(stage)


def empty(folder: Path) -> None:
    """Make the folder, without the files of an earlier run, which are not this one's results."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.json", "*.log", "*.xml"):
        for file in folder.glob(pattern):
            file.unlink()


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())

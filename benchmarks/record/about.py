"""What every published number needs beside it: device, commit, command, date, model."""

import hashlib
import io
import os
import platform
import shlex
import subprocess
import sys
import tarfile
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.record.definitions import definitions
from legokv.built.folder import EngineFacts

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
RAW = ROOT / "out" / "bench"

MEASURED_CODE = (
    "src",
    "plugins",
    "model_repo",
    "client",
    "benchmarks",
    ":!benchmarks/results",
    ":!benchmarks/report",
    ":!benchmarks/plots",
)
"""What a number depends on: a commit that touches nothing of it leaves results as they are."""


def about(model: str, dtype: str, num_cases: int, num_threads: int) -> dict[str, Any]:
    """The facts of one result file; the command is the one that this process was started with."""
    return {
        "device": f"{device()}, {num_threads} threads",
        "commit": commit(),
        "command": command(),
        "date": date.today().isoformat(),
        "model": model,
        "dtype": dtype,
        "num_cases": num_cases,
    }


def model_label(facts: EngineFacts) -> str:
    """An engine's model in words: its name, size and fingerprint."""
    return f"{facts.name}, {facts.model.num_layers} layers, weights {facts.fingerprint[:12]}"


def command() -> str:
    """The command line that repeats this run: `python -m benchmarks.x`, or a script by path."""
    main = sys.modules["__main__"].__spec__
    if main is None:
        return shlex.join(["python", *sys.argv])
    name = main.name.removesuffix(".__main__")
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


def device() -> str:
    """The processor's name and how many cores this machine has."""
    return f"{_processor()}, {len(_cores())} cores"


def commit() -> str:
    """Short hash of the checkout, "-dirty" behind it where measured code differs from it."""
    short = _git("rev-parse", "--short", "HEAD")
    if not short:
        return "unknown"
    return f"{short}-dirty" if uncommitted() else short


def uncommitted() -> str:
    """A digest of what differs from the commit in measured code; empty if nothing does."""
    difference = _git("diff", "HEAD", "--", *MEASURED_CODE)
    return hashlib.sha256(difference.encode()).hexdigest()[:12] if difference else ""


def measured_since(commit_of_result: str) -> bool | None:
    """Whether code that numbers depend on changed since; None for a commit git does not know.

    A move, an import and a comment change nothing: the definitions of both commits are compared.
    """
    plain = commit_of_result.removesuffix("-dirty")
    finished = subprocess.run(
        ["git", "-C", str(ROOT), "diff", "--quiet", plain, "HEAD", "--", *MEASURED_CODE],
        capture_output=True,
        check=False,
    )
    if finished.returncode != 1:
        return {0: False}.get(finished.returncode)
    then, now = (_git("rev-parse", name) for name in (plain, "HEAD"))
    return _measured_at(ROOT, then) != _measured_at(ROOT, now)


@cache
def _measured_at(root: Path, commit_hash: str) -> frozenset[str]:
    """The definitions of the measured code at a commit of the repository at `root`."""
    finished = subprocess.run(
        ["git", "-C", str(root), "archive", commit_hash], capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(finished.stdout)) as archive:
        members = [m for m in archive.getmembers() if m.isfile() and _is_measured(m.name)]
        texts = (archive.extractfile(member).read().decode(errors="replace") for member in members)
        return definitions(dict(zip((m.name for m in members), texts, strict=True)))


def _is_measured(path: str) -> bool:
    left_out = tuple(f"{p.removeprefix(':!')}/" for p in MEASURED_CODE if p.startswith(":!"))
    return path.startswith(tuple(f"{p}/" for p in MEASURED_CODE)) and not path.startswith(left_out)


def _git(*arguments: str) -> str:
    finished = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return finished.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))

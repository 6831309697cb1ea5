"""One stage of the GPU run: a process of its own, with a time limit, whose result is kept."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KEPT_CHARACTERS = 4000
PROFILED = ("attend_tiled", "attend_split", "kv_import")
ENDED = ("ok", "failed", "timed out", "not run")


@dataclass(frozen=True)
class Stage:
    """A command and the most seconds it may take; `not_run` is the reason for leaving it out.

    kept_characters: how much of what it says comes into the report, from its end on.
    """

    name: str
    command: Sequence[str]
    limit_seconds: float
    not_run: str | None = None
    kept_characters: int = KEPT_CHARACTERS


@dataclass(frozen=True)
class StageResult:
    """How a stage ended (one of ENDED); `detail` is the end of what it printed, or the reason."""

    name: str
    ended: str
    seconds: float
    limit_seconds: float
    detail: str = ""


def run_stage(stage: Stage, log: Path, environment: Mapping[str, str], left: float) -> StageResult:
    """Run the stage within its own limit and what is `left` of the whole, output going to `log`.

    Never raises for what the command does: a later stage has nothing to fear from it.
    """
    limit = min(stage.limit_seconds, left)
    if stage.not_run is not None:
        return StageResult(stage.name, "not run", 0.0, limit, stage.not_run)
    if limit <= 0:
        return StageResult(stage.name, "not run", 0.0, limit, "no time was left for it")
    started = time.monotonic()
    with log.open("wb") as output:
        ended = _ended(stage.command, output.fileno(), {**os.environ, **environment}, limit)
    text = log.read_text(encoding="utf-8", errors="replace")
    seconds = time.monotonic() - started
    return StageResult(stage.name, ended, round(seconds, 1), limit, text[-stage.kept_characters :])


def _ended(command: Sequence[str], output: int, environment: dict[str, str], limit: float) -> str:
    process = subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        # Its own group: a compiler that it started ends with it.
        start_new_session=True,
    )
    try:
        return "ok" if process.wait(timeout=limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "timed out"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

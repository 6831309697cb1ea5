"""Builds a plan in a process of its own: with the environment it needs, shown, interruptible."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from legokv.errors import PlanBuildFailed
from legokv.plan.builders import environment_with_library
from legokv.plan.request import PlanRequest, PlanSummary

SECONDS_BETWEEN_LINES = 2.0
KEPT_LINES = 20
BUILDING_VARIABLE = "LEGOKV_BUILDING_PLAN"
"""In the process that builds: plugins launch nothing (plugins/include/legokv/building.h)."""

Say = Callable[[str], None]


def build_plan(request: PlanRequest, say: Say) -> PlanSummary:
    """Build `request.plan_file`, saying how far it is; what came of it.

    PlanBuildFailed if TensorRT fails or its process dies. An interruption ends that process.
    """
    with _build_process(request) as process:
        assert process.stdin is not None, "standard input is a pipe"
        assert process.stdout is not None, "standard output is a pipe"
        assert process.stderr is not None, "standard error is a pipe"
        last_lines = _last_lines(process.stderr)
        process.stdin.write(request.to_json())
        process.stdin.close()
        last = _show(map(json.loads, process.stdout), say)
        status = process.wait()
        output = last_lines()
    if "summary" in last:
        summary = last["summary"]
        return PlanSummary(**(summary | {"layers": tuple(summary["layers"])}))
    reason = last.get("error") or _death(status)
    words = "; it had said:" if output else "; it had said nothing"
    raise PlanBuildFailed("\n".join([f"{request.backend}: {reason}{words}", *output]))


@contextmanager
def _build_process(request: PlanRequest) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "legokv.plan.child"]
    # Beside the plan: what a killed build leaves of it goes where the rest of that build goes.
    beside = Path(request.plan_file).parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=".links-") as links:
        environment = dict(os.environ)
        if request.backend == "tensorrt-rtx":
            environment = environment_with_library(Path(links), environment)
        environment[BUILDING_VARIABLE] = "1"
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        with process:
            try:
                yield process
            finally:
                process.kill()
                process.wait()


def _show(events: Iterator[dict[str, Any]], say: Say) -> dict[str, Any]:
    """Say progress now and then; the last event that is not progress, {} if there is none."""
    last: dict[str, Any] = {}
    said_at = 0.0
    for event in events:
        if "phase" not in event:
            last = event
        elif time.monotonic() - said_at >= SECONDS_BETWEEN_LINES:
            said_at = time.monotonic()
            say(f"  {event['phase']}: {event['done']} of {event['total']}")
    return last


def _last_lines(stream: IO[str]) -> Callable[[], list[str]]:
    """Reads a stream to its end on a thread; the function waits for that: the last lines."""
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    thread = threading.Thread(
        target=lambda: lines.extend(line.rstrip() for line in stream), daemon=True
    )
    thread.start()

    def wait() -> list[str]:
        thread.join()
        return list(lines)

    return wait


def _death(status: int) -> str:
    if status < 0:
        return f"the build process was ended by {signal.Signals(-status).name}"
    return f"the build process ended with status {status} and no result"

"""The process that builds a plan: `python -m legokv.plan.child < request.json`.

It prints one JSON object a line: {"phase", "done", "total"} as it goes, then {"summary"} or
{"error"}. TensorRT's own words go to standard error. Killing it leaves no part of a plan, and it
ends with the process that started it.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import TextIO

from legokv.errors import LegokvError
from legokv.parent_death import end_with_parent
from legokv.plan.backends import PLAN_BACKENDS
from legokv.plan.builders import PlanBuilder, open_builder, plan_from_onnx
from legokv.plan.llm import open_llm_builder
from legokv.plan.request import PlanRequest, request_from_json


def main() -> int:
    # A starter that is killed has no time to end this process.
    end_with_parent(signal.SIGKILL)
    # Ctrl-C reaches the whole group; TensorRT's C++ would hold Python's handler back for minutes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    request = request_from_json(sys.stdin.read())
    events = _own_output()

    def report(phase: str, done: int, total: int) -> None:
        _print(events, {"phase": phase, "done": done, "total": total})

    try:
        summary = plan_from_onnx(_open_builder(request), request, report)
    except LegokvError as error:
        _print(events, {"error": str(error)})
        return 1
    _print(events, {"summary": asdict(summary)})
    return 0


def _open_builder(request: PlanRequest) -> PlanBuilder:
    if request.backend == "tensorrt-llm":
        return open_llm_builder(request.dtype)
    # A strongly typed network has its dtype already.
    return open_builder(PLAN_BACKENDS[request.backend].modules[-1])


def _own_output() -> TextIO:
    """Standard output for events alone: what libraries print there goes to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _print(events: TextIO, event: dict[str, object]) -> None:
    print(json.dumps(event, allow_nan=False), file=events, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""kill -9 for the process of one model, and what `legokv serve` says then."""

import json
import os
import signal
import subprocess
import time

from legokv.serving.triton.processes import child_processes, model_of

_SEEN_SECONDS = 120


def kill_model(serve: int, model: str) -> int:
    """Kill the process of a model below a `legokv serve`; its number."""
    return _kill(next(iter(_processes(serve, model))))


def kill_starting_model(serve: int, model: str, *, other_than: int | None = None) -> int:
    """The same in a server that starts, as soon as there is another process than this one.

    Triton waits for a model's first words without end.
    """
    deadline = time.monotonic() + _SEEN_SECONDS
    while not (found := _processes(serve, model) - {other_than}):
        assert time.monotonic() < deadline, f"no process runs {model} after {_SEEN_SECONDS} s"
        time.sleep(0.01)
    return _kill(found.pop())


def _processes(serve: int, model: str) -> set[int]:
    children = (pid for triton in child_processes(serve) for pid in child_processes(triton))
    return {pid for pid in children if model_of(pid) == model}


def _kill(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return pid


def next_events(process: "subprocess.Popen[str]", number: int) -> list[dict[str, str]]:
    """What `legokv serve` says next; fewer if it ends."""
    assert process.stdout is not None
    lines = (process.stdout.readline() for _ in range(number))
    return [json.loads(line) for line in lines if line]

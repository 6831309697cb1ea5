"""Which model's process has ended is read from the kernel, though its parent has not noticed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from legokv.serving.triton.processes import ModelWatch, child_processes, model_of

# A parent that fetches no child's status, as Triton does not of a model that never connected.
PARENT = """
import subprocess, sys
children = [subprocess.Popen([sys.executable, *words]) for words in {commands}]
sys.stdin.read()
"""
SLEEP = "import sys; sys.stdin.read()"


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts a process with children that run these models; its number, once they run."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*models: str) -> int:
        for model in models:
            (tmp_path / model / "1").mkdir(parents=True)
            (tmp_path / model / "1" / "model.py").write_text(SLEEP)
        commands = [[str(tmp_path / model / "1" / "model.py")] for model in models]
        program = PARENT.format(commands=commands)
        one = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        started.append(one)
        wait_for(lambda: names(one.pid) == set(models))
        return one.pid

    yield start
    for one in started:
        one.communicate()


def test_a_model_that_ends_is_named_and_the_others_are_not(parent: Callable[..., int]) -> None:
    server = parent("engine", "generate")
    watch = ModelWatch(server)
    assert watch.look() == ()
    kill(server, "generate")
    assert watch.lost() == watch.look() == ("generate",)


def test_a_model_that_ended_before_it_was_seen_is_told_with_its_number(
    parent: Callable[..., int],
) -> None:
    server = parent("engine", "generate")
    pid = kill(server, "engine")
    watch = ModelWatch(server)
    assert watch.look() == (f"unknown ({pid})",)
    assert watch.lost() == ()


def names(server: int) -> set[str | None]:
    return {model_of(pid) for pid in child_processes(server)}


def kill(server: int, model: str) -> int:
    pid = next(pid for pid in child_processes(server) if model_of(pid) == model)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid not in child_processes(server))
    return pid


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""Model processes that are lost while the server starts, for the first time or again."""

import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from clients import WAYS
from killing import kill_model, kill_starting_model, next_events
from server import command, serving

from legokv.serving.triton.restarts import RESTART_TRIES

END_SECONDS = 120


@pytest.mark.parametrize("model", ["engine", "generate", "documents"])
def test_a_model_lost_while_the_server_starts_ends_it(
    engine_folder: Path, tmp_path: Path, model: str
) -> None:
    process = subprocess.Popen(
        command(engine_folder, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ended(process):
        kill_starting_model(process.pid, model)
        _, said = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 1
    assert re.search(rf"legokv: {lost_while_starting(model)}$", said.rstrip()), said


def test_a_model_that_dies_again_while_the_server_restarts_is_started_once_more(
    engine_folder: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as threads, serving(engine_folder, tmp_path) as server:
        first = kill_model(server.process.pid, "engine")
        kill_starting_model(server.process.pid, "engine", other_than=first)
        # They ask while it is down: what they are told is when to ask again.
        asking = [threads.submit(ask, server.api, "none", max_retries=30) for ask in WAYS]
        lost, lost_again, ready = next_events(server.process, 3)
        assert all(asked.result() >= 1 for asked in asking)
        answer = server.ask(text_input="Who?", max_tokens=4)
    assert lost["reason"] == "the process of model engine ended by itself"
    assert re.fullmatch(lost_while_starting("engine"), lost_again["reason"])
    assert ready["event"] == "ready"
    assert answer["generated_tokens"] == 4


def test_a_model_that_dies_at_each_restart_ends_the_server_after_a_few_tries(
    engine_folder: Path, tmp_path: Path
) -> None:
    with serving(engine_folder, tmp_path) as server:
        killed = None
        for _ in range(2 + RESTART_TRIES):
            killed = kill_starting_model(server.process.pid, "generate", other_than=killed)
        events = next_events(server.process, 2 + RESTART_TRIES)
        assert server.process.wait(END_SECONDS) == 1
    assert [event["event"] for event in events] == ["restarting"] * (1 + RESTART_TRIES)


def test_a_signal_while_the_server_restarts_ends_it(engine_folder: Path, tmp_path: Path) -> None:
    with serving(engine_folder, tmp_path) as server:
        kill_model(server.process.pid, "engine")
        (restarting,) = next_events(server.process, 1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(END_SECONDS) == 0
        (last,) = next_events(server.process, 2)
    assert (restarting["event"], last["event"]) == ("restarting", "stopped")


def lost_while_starting(model: str) -> str:
    """What is said of it: it may have ended before whoever watches could learn its name, or so late
    that Triton noticed.
    """
    process = rf"process of model ({model}|unknown \(\d+\)) ended while the server started"
    return f"the ({process}|server ended while starting)"


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator[None]:
    """No process is left after the block, whatever fails in it."""
    try:
        yield
    finally:
        process.kill()
        process.wait()

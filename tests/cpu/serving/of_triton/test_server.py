"""What a server says when it does not start, and when it is told twice to stop."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from legokv.errors import EngineMismatch, ServerError
from legokv.serving.ending import failure_told
from legokv.serving.event_stream import FOLDER_VARIABLE
from legokv.serving.settings import Settings
from legokv.serving.triton.server import TritonServer

TRITONS = "E1129 14:38:06.2 937 model_lifecycle.cc:642] failed to load 'engine'"
MODELS = "2026-11-29 14:38:06,200 engine INFO legokv: digested the weights"
ENDS = f"print({MODELS!r}); print({TRITONS!r}); print('At:')"
RUNS = "import time; time.sleep(60)"


class Witness:
    """Of a server that answers nothing, where `open_requests` are under way."""

    def __init__(self, open_requests: int = 0) -> None:
        self.open_requests = open_requests

    def is_ready(self) -> bool:
        return False

    def num_open(self) -> int:
        return self.open_requests

    def forget(self) -> None: ...

    def refuse(self, sentence: str) -> None: ...

    def end(self) -> None: ...

    def deaf_reason(self) -> str:
        return ""


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def server_of(
    program: str,
    folder: Path,
    processes: list["subprocess.Popen[bytes]"],
    witness: Witness | None = None,
) -> TritonServer:
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    processes.append(process)
    settings = Settings(engine=folder, drain_seconds=20)
    return TritonServer(settings, process, witness or Witness(), folder)


def test_what_a_model_refused_is_the_reason_and_no_line_of_tritons_is_shown(
    tmp_path: Path,
    processes: list["subprocess.Popen[bytes]"],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(EngineMismatch),
        failure_told("engine", {FOLDER_VARIABLE: str(tmp_path)}),
    ):
        raise EngineMismatch("its weights\x1b are others: build it again")
    server = server_of(ENDS, tmp_path, processes)
    with pytest.raises(ServerError) as failure:
        server.wait_until_ready()
    assert str(failure.value) == (
        "the server ended while starting: its weights\\x1b are others: build it again"
    )
    server.end()
    assert capsys.readouterr().err.splitlines() == [MODELS]


def test_tritons_lines_are_shown_where_no_model_said_why(
    tmp_path: Path,
    processes: list["subprocess.Popen[bytes]"],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = server_of(ENDS, tmp_path, processes)
    with pytest.raises(ServerError, match=r"^the server ended while starting$"):
        server.wait_until_ready()
    server.end()
    assert capsys.readouterr().err.splitlines() == [MODELS, TRITONS, "At:"]


@pytest.mark.parametrize("signals", [1, 2])
def test_a_second_signal_ends_what_is_under_way_and_says_that_it_did(
    tmp_path: Path,
    processes: list["subprocess.Popen[bytes]"],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    signals: int,
) -> None:
    monkeypatch.setattr("legokv.serving.triton.server._ENDING_SECONDS", 0.1)
    witness = Witness(open_requests=3 if signals == 2 else 0)
    server = server_of(RUNS, tmp_path, processes, witness)
    server._was_ready = True
    for _ in range(signals):
        server.stop()
    began = time.monotonic()
    server.end()
    assert time.monotonic() - began < 15
    told = (tmp_path / "ending").read_text()
    if signals == 2:
        assert "a second signal ended the answer before drain_seconds 20" in told
        assert "3 requests under way are ended" in capsys.readouterr().err
    else:
        assert "not over after drain_seconds 20" in told
        assert capsys.readouterr().err == ""

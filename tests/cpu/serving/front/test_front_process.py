"""The front's own process: what it answers without a server, and that it is started again."""

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paths import ROOT

from legokv.errors import ServerError
from legokv.serving.front import process
from legokv.serving.front.process import Front, new_brief, running_front
from legokv.serving.settings import Settings
from legokv.serving.triton.processes import child_processes, with_ports

SECONDS = 60
ASKED = b'{"text_input":"Who?"}'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    free = with_ports(
        Settings(
            engine=tmp_path,
            cache_dir=tmp_path,
            api="off",
            **dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0),
        )
    )
    return free


@pytest.fixture
def front(settings: Settings, tmp_path: Path) -> Iterator[Front]:
    with running_front(settings, new_brief(settings, tmp_path, ROOT / "model_repo")) as one:
        yield one


def answer(settings: Settings, path: str, body: bytes | None = None) -> tuple[int, str]:
    """Status and sentence, when somebody listens."""
    deadline = time.monotonic() + SECONDS
    while True:
        # From another address: a port that nobody listens on yet may else connect to itself.
        connection = http.client.HTTPConnection(
            "127.0.0.1", settings.http_port, timeout=10, source_address=("127.0.0.2", 0)
        )
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())["error"]
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        finally:
            connection.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_front_without_a_server_says_so_and_is_started_again_when_it_ends(
    front: Front, settings: Settings
) -> None:
    ask = "/v2/models/generate/generate"
    assert answer(settings, "/v2/health/ready")[0] == 503
    status, sentence = answer(settings, ask, ASKED)
    assert (status, "ask again in a few seconds" in sentence) == (503, True)
    assert not front.is_ready()

    front.refuse("the server is stopping")
    until(lambda: answer(settings, ask, ASKED) == (503, "the server is stopping"))
    (first,) = (pid for pid in child_processes(os.getpid()) if is_front(pid))
    os.kill(first, signal.SIGKILL)
    until(lambda: front.look() is None and fronts() not in ([], [first]))
    until(lambda: answer(settings, ask, ASKED) == (503, "the server is stopping"))

    (second,) = (pid for pid in child_processes(os.getpid()) if is_front(pid))
    os.kill(second, signal.SIGSTOP)
    front.look()
    assert is_front(second)


def test_a_front_that_hangs_or_ends_again_and_again_is_told(
    front: Front, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "HANG_SECONDS", -1.0)
    for _ in range(process.MAX_STARTS - 1):
        front.look()
    assert capfd.readouterr().err.count("legokv: the front hung for") == process.MAX_STARTS - 1
    with pytest.raises(ServerError, match=f"{process.MAX_STARTS} times in 60 s"):
        front.look()


def test_a_folder_with_too_long_a_name_is_told_with_the_next_step(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match=r"at most 100\): set TMPDIR"):
        new_brief(settings, tmp_path / ("a" * 100), ROOT)


def test_a_port_that_is_taken_ends_the_front(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", settings.http_port)):
        brief = new_brief(settings, tmp_path, ROOT / "model_repo")
        with running_front(settings, brief) as front:
            (pid,) = (pid for pid in child_processes(os.getpid()) if is_front(pid))
            until(lambda: not is_front(pid))
            assert not front.is_ready()


def fronts() -> list[int]:
    return [pid for pid in child_processes(os.getpid()) if is_front(pid)]


def is_front(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return "legokv.serving.doors" in words and stat.rpartition(")")[2].split()[0] != "Z"

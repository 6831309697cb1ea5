"""A server that is told to stop lets answers under way end, and tells those that do not."""

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from server import RunningServer, serving

SENTENCE = "the server is stopping and takes no new requests"


class Streamed:
    """One streamed answer over HTTP, read in a thread of its own."""

    def __init__(self, server: RunningServer, **fields: Any) -> None:
        body = json.dumps({"text_input": "Who?", "stream": True, **fields}).encode()
        url = f"{server.http}/v2/models/generate/generate_stream"
        self.events: list[dict[str, Any]] = []
        self._response = urllib.request.urlopen(url, body, timeout=120)
        self._read_one()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def end(self) -> dict[str, Any]:
        """The last event."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.events[-1]

    def _read(self) -> None:
        while self._read_one():
            pass

    def _read_one(self) -> bool:
        while line := self._response.readline():
            if line.startswith(b"data: "):
                self.events.append(json.loads(line.removeprefix(b"data: ")))
                return True
        return False


def stopped(server: RunningServer) -> float:
    """Seconds that a SIGTERM takes; new requests are refused, and readiness is gone meanwhile."""
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    while server.post("/v2/models/documents/infer", b"{}")[0] != 503:
        assert time.monotonic() - began < 5
    status, body = server.post("/v2/models/generate/generate", b'{"text_input": "Who?"}')
    assert status == 503
    assert SENTENCE in json.loads(body)["error"]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{server.http}/v2/health/ready", timeout=5)
    assert server.process.wait(40) == 0
    return time.monotonic() - began


def test_an_answer_under_way_is_given_whole_before_the_server_ends(
    engine_folder: Path, tmp_path: Path
) -> None:
    with serving(engine_folder, tmp_path) as server:
        answer = Streamed(server, max_tokens=1500, min_tokens=1500)
        assert stopped(server) < 25
    last = answer.end()
    assert (last["finish_reason"], last["generated_tokens"]) == ("length", 1500)


def test_an_answer_that_is_not_over_in_time_ends_with_an_error_that_says_so_and_a_line(
    engine_folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    many = {"num_return_sequences": 16, "temperature": 1.0, "min_tokens": 1900}
    with (
        log.open("wb") as errors,
        serving(engine_folder, tmp_path, errors, drain_seconds=1) as server,
    ):
        answer = Streamed(server, id="cut", max_tokens=1900, **many)
        assert stopped(server) < 20
    said = "the answer was not over after drain_seconds 1: ask again"
    assert said in answer.end()["error"]
    text = log.read_text()
    (line,) = (line for line in text.splitlines() if '"request_id": "cut"' in line)
    assert json.loads(line)["error"]["code"] == "UNAVAILABLE"
    assert "legokv: stopping: 1 requests under way have 1 s (--drain-seconds)" in text

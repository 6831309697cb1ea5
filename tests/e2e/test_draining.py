"""A server that is told to stop lets answers under way end, and tells those that do not."""

import json
import signal
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from processes import soon
from server import RunningServer, serving

SENTENCE = "the server is stopping and takes no new requests"
SLOW = {"return_log_probs": True, "num_top_log_probs": 20}
END_SECONDS = 120


class Streamed:
    """One streamed answer over HTTP, read in a thread of its own."""

    def __init__(self, server: RunningServer, **fields: Any) -> None:
        body = json.dumps({"text_input": "Who?", "stream": True, **fields}).encode()
        url = f"{server.http}/v2/models/generate/generate_stream"
        # As they came: a client that parses each falls behind a server on a busy machine.
        self._events: list[bytes] = []
        self._response = urllib.request.urlopen(url, body, timeout=120)
        self._read_one()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def end(self) -> dict[str, Any]:
        """The last event."""
        self._thread.join(END_SECONDS)
        assert not self._thread.is_alive()
        return json.loads(self._events[-1])

    def _read(self) -> None:
        while self._read_one():
            pass

    def _read_one(self) -> bool:
        while line := self._response.readline():
            if line.startswith(b"data: "):
                self._events.append(line.removeprefix(b"data: "))
                return True
        return False


def stop(server: RunningServer) -> None:
    """SIGTERM, and wait for the end; new requests are refused, and readiness is gone meanwhile."""
    server.process.send_signal(signal.SIGTERM)
    soon(lambda: server.post("/v2/models/documents/infer", b"{}")[0] == 503)
    status, body = server.post("/v2/models/generate/generate", b'{"text_input": "Who?"}')
    assert status == 503
    assert SENTENCE in json.loads(body)["error"]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{server.http}/v2/health/ready", timeout=60)
    assert server.process.wait(END_SECONDS) == 0


def test_an_answer_under_way_is_given_whole_before_the_server_ends(
    engine_folder: Path, tmp_path: Path
) -> None:
    with serving(engine_folder, tmp_path) as server:
        answer = Streamed(server, max_tokens=1900, min_tokens=1900, **SLOW)
        stop(server)
    last = answer.end()
    assert (last["finish_reason"], last["generated_tokens"]) == ("length", 1900)


def test_an_answer_that_is_not_over_in_time_ends_with_an_error_that_says_so_and_a_line(
    engine_folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    many = {"num_return_sequences": 16, "temperature": 1.0, "min_tokens": 1900, **SLOW}
    with (
        log.open("wb") as errors,
        serving(engine_folder, tmp_path, errors, drain_seconds=4) as server,
    ):
        answer = Streamed(server, id="cut", max_tokens=1900, **many)
        stop(server)
    said = "the answer was not over after drain_seconds 4: ask again"
    assert said in answer.end()["error"]
    text = log.read_text()
    (line,) = (line for line in text.splitlines() if '"request_id": "cut"' in line)
    assert json.loads(line)["error"]["code"] == "UNAVAILABLE"
    assert "legokv: stopping: 1 requests under way have 4 s (--drain-seconds)" in text

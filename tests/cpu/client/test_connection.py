"""The clients wait for nobody without end, and say what they waited for, and from whom."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from paths import CLIENT
from tritonclient.grpc import service_pb2


def run(*words: str, text: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, str(CLIENT / words[0]), *words[1:]],
        input=text,
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of one who takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class _NoEnd(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Refuses each question, and never ends its stream."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def service(self, details: Any) -> Any:
        if details.method.endswith("ModelConfig"):
            return grpc.unary_unary_rpc_method_handler(self._config)
        return grpc.stream_stream_rpc_method_handler(self._stream)

    def _config(self, body: bytes, context: Any) -> bytes:
        config = service_pb2.ModelConfigResponse()
        for name in ("text_input", "namespace"):
            config.config.input.add(name=name, data_type="TYPE_STRING")
        config.config.input.add(name="stream", data_type="TYPE_BOOL")
        return bytes(config.SerializeToString())

    def _stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        next(requests)
        refusal = service_pb2.ModelStreamInferResponse(error_message="no pages are free")
        yield refusal.SerializeToString()
        self.over.wait()


@pytest.fixture
def without_end() -> Iterator[str]:
    """The address of a server that refuses each question, and never ends its stream."""
    service = _NoEnd()
    with futures.ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, handlers=(service,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        service.over.set()
        server.stop(None).wait()


@pytest.fixture
def http_port() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("ask.py", "Who?"), "the list of the server's fields"),
        (("ask.py", "Who?", "--documents", "sea"), "the reply to 'list'"),
        (("documents.py", "list"), "the reply to 'list'"),
        (("documents.py", "delete", "doc-" + "0" * 24), "the reply to 'delete'"),
    ],
)
def test_a_silent_server_is_left_in_time_with_what_was_due(
    silent: str, words: tuple[str, ...], what: str
) -> None:
    started = time.monotonic()
    result = run(words[0], "--url", silent, "--wait-seconds", "1", *words[1:])
    assert time.monotonic() - started < 50
    said = f"error: {silent} said nothing for 1 s while {what} was due; --wait-seconds waits longer"
    assert (result.returncode, result.stderr.decode().strip()) == (1, said)


def test_a_port_of_another_protocol_is_said_with_the_next_step(http_port: str) -> None:
    result = run("ask.py", "--url", http_port, "Who?")
    said = result.stderr.decode()
    assert result.returncode == 1
    assert f"cannot connect to a server at {http_port}" in said
    assert "--url takes the gRPC address that `legokv serve` says" in said


@pytest.mark.parametrize(
    "url", ["localhost", "http://127.0.0.1:8000", "127.0.0.1:99999", "127.0.0.1:0", "", "a:b"]
)
@pytest.mark.parametrize("words", [("ask.py", "Who?"), ("documents.py", "list")])
def test_an_address_that_is_none_is_refused_before_anything_is_sent(
    url: str, words: tuple[str, ...]
) -> None:
    result = run(words[0], "--url", url, *words[1:])
    said = result.stderr.decode().strip()
    assert result.returncode == 1
    assert said.startswith("error: --url is HOST:PORT of the server's gRPC, as in 127.0.0.1:8001")
    assert "Traceback" not in said


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_wait_that_is_none_is_refused(seconds: str) -> None:
    assert run("ask.py", "--wait-seconds", seconds, "Who?").returncode == 2


def test_words_are_utf_8_whatever_the_locale(silent: str, tmp_path: Path) -> None:
    """And what is none of it is told of in one sentence."""
    file = tmp_path / "größe 東京.txt"
    file.write_text("Nine metres.", encoding="utf-8")
    plain: dict[str, Any] = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    common = ("--url", silent, "--wait-seconds", "1")
    added = run("documents.py", *common, "add", str(file), **plain)
    assert f"error: {file}: {silent} said nothing" in added.stderr.decode()
    found = run("ask.py", *common, "Größe?", "--documents", "größe", **plain)
    assert "the reply to 'list' was due" in found.stderr.decode()
    torn = run("ask.py", *common, "-", text=b"a\xff")
    assert (
        "error: standard input is not UTF-8: invalid start byte at byte 1" in torn.stderr.decode()
    )


def test_a_stream_that_does_not_end_after_a_refusal_is_left(without_end: str) -> None:
    result = run("ask.py", "--url", without_end, "Who?")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.decode() == "error: no pages are free\n"


def printed_to(output: IO[bytes] | int, unbuffered: str) -> tuple[int, bytes]:
    """The status and the words of a client that prints to `output`."""
    script = "from connection import exit_status, leave; "
    script += "leave(exit_status(lambda: print('an answer') or 0))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        stdout=output,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
        cwd=CLIENT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_an_error(unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        assert printed_to(full, unbuffered) == (1, b"error: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_closes_the_output_has_enough_and_nothing_is_said(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert printed_to(writer, unbuffered) == (0, b"")
    finally:
        os.close(writer)


def test_an_error_that_is_none_of_the_system_s_is_said_in_its_own_words() -> None:
    script = "from connection import exit_status, leave\n"
    script += "def run(): raise OSError('the output is gone')\n"
    script += "leave(exit_status(run))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, timeout=60, cwd=CLIENT
    )
    assert (result.returncode, result.stderr) == (1, b"error: the output is gone\n")

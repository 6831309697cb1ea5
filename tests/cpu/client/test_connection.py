"""The clients wait for nobody without end, and say what they waited for, and from whom."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import CLIENT


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
    assert time.monotonic() - started < 20
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

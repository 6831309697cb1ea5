"""Streams: a client that leaves ends its request, a slow one its own stream, and no other's."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_world import RunningGateway, running_gateway

from legokv.serving.gateway import streams

SECONDS = 20


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path) as one:
        yield one


def asking(gateway: RunningGateway, *, stream: bool = True) -> socket.socket:
    """A connection over which a chat was asked."""
    fields = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    body = json.dumps(fields).encode()
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    return connection


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_client_that_leaves_ends_its_request(gateway: RunningGateway) -> None:
    gateway.models.endless = True
    with asking(gateway) as connection:
        assert b"200 OK" in connection.recv(65536)
    assert gateway.models.gone.wait(SECONDS)


def test_a_slow_reader_s_stream_ends_with_the_reason_and_others_go_on(
    gateway: RunningGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(streams, "WRITE_SECONDS", 0.3)
    gateway.models.endless = True
    with asking(gateway) as connection:
        assert gateway.models.gone.wait(SECONDS)
        gateway.models.endless = False
        answer = gateway.openai().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x"}]
        )
        assert answer.choices[0].message.content == "Orrin keeps it."
        text = b""
        while b"0\r\n\r\n" not in text[-10:]:
            text += connection.recv(2**20)
    last = [line for line in text.split(b"\n") if line.startswith(b"data: ")][-1]
    assert "took nothing of its stream for 0.3 s" in json.loads(last[6:])["error"]["message"]
    lines = [json.loads(record.message) for record in caplog.records]
    assert [line["request_id"] for line in lines if "error" in line] == ["mine"]


def test_what_a_stream_holds_for_a_slow_reader_is_bounded(gateway: RunningGateway) -> None:
    gateway.models.endless = True
    before = resident()
    connections = [asking(gateway) for _ in range(20)]
    time.sleep(0.5)  # as much as twenty streams make in half a second, were nothing in their way
    grown = resident() - before
    for connection in connections:
        connection.close()
    assert grown < 20 * 2**20


def resident() -> int:
    status = Path("/proc/self/statm").read_text().split()
    return int(status[1]) * 4096


def test_the_request_s_id_comes_back_and_one_that_no_log_can_have_does_not(
    gateway: RunningGateway,
) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    for name, same in ((b"abc-1", True), (b"a" * 200, False), (b"\xff", False)):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as connection:
            connection.sendall(head + b"X-Request-Id: " + name + b"\r\n\r\n")
            answer = read_all(connection)
        assert (b"x-request-id: " + name + b"\r\n" in answer) is same
        assert b"x-request-id: " in answer

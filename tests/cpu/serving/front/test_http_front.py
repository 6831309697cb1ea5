"""What reaches Triton through the front over HTTP, and what comes back of it."""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_triton import Running, running_front

from legokv.serving.front import bounds
from legokv.serving.front.bounds import Bounds

GENERATE = "/v2/models/generate/generate"
STREAM = "/v2/models/generate/generate_stream"
INFER = "/v2/models/documents/infer"
LIMIT = 100_000
TENSOR = {"name": "request", "shape": [1], "datatype": "BYTES"}
REQUEST = json.dumps({"inputs": [{**TENSOR, "data": ["{}"]}]}).encode()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Running]:
    with running_front(tmp_path, Bounds(LIMIT, connections=8)) as one:
        yield one


def error(body: bytes) -> str:
    return str(json.loads(body)["error"])


def test_a_request_and_its_answer_are_passed_on_byte_for_byte(front: Running) -> None:
    body = b'{"text_input": "Who?",   "max_tokens": 4}'
    assert front.post(GENERATE, body, "Content-Type: application/json") == (200, b'{"text": "x"}')
    (heard,) = front.triton.heard
    assert heard.startswith(b"POST /v2/models/generate/generate HTTP/1.1\r\n")
    assert heard.endswith(b"\r\n\r\n" + body)
    assert b"Content-Type: application/json" in heard or b"content-type: app" in heard.lower()


def test_requests_one_after_another_come_to_triton_over_one_connection(front: Running) -> None:
    for _ in range(5):
        assert front.post(GENERATE, b"{}")[0] == 200
    assert len(front.triton.heard) == 5
    assert front.triton.num_connections == 1


def test_no_header_reaches_triton_but_those_it_needs(front: Running) -> None:
    front.post(GENERATE, b"{}", "X-Secret: a", "Accept-Encoding: gzip", "Cookie: b", "triton-x: c")
    (heard,) = front.triton.heard
    names = {line.split(b":")[0].lower() for line in heard.split(b"\r\n")[1:] if b":" in line}
    assert names == {b"host", b"content-length"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 50_000, "50000 objects and lists inside one another"),
        (b"[" * 90_000, "90000 members"),
        (b'{"parameters":' * 40 + b"1" + b"}" * 40, "40 objects"),
    ],
)
def test_json_that_triton_dies_of_is_refused(front: Running, body: bytes, reason: str) -> None:
    for path in (GENERATE, STREAM, INFER):
        status, answer = front.post(path, body)
        assert status == 400
        assert reason in error(answer)
    assert front.triton.heard == []


def test_a_body_is_bounded_however_it_comes(front: Running) -> None:
    declared = front.post(GENERATE, b" " * (LIMIT + 1))
    chunk = b"%x\r\n%b\r\n" % (1000, b" " * 1000)
    head = b"POST " + GENERATE.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    chunked = front.ask(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 200 + b"0\r\n\r\n")
    inflated = front.post(GENERATE, gzip.compress(b" " * 10**7), "Content-Encoding: gzip")
    assert declared[0] == inflated[0] == 413
    assert f"at most {LIMIT} are taken (--max-request-bytes)" in error(declared[1])
    assert b" 413 " in chunked
    assert front.triton.heard == []


def test_a_compressed_body_is_passed_on_plain(front: Running) -> None:
    front.post(GENERATE, gzip.compress(b'{"text_input": "Who?"}'), "Content-Encoding: gzip")
    assert front.triton.heard[0].endswith(b'\r\n\r\n{"text_input": "Who?"}')
    status, answer = front.post(GENERATE, b"{}", "Content-Encoding: br")
    assert (status, "gzip, deflate or identity" in error(answer)) == (400, True)


def test_tiny_chunks_are_refused_and_large_ones_are_not(front: Running) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    answer = front.ask(head + b"1\r\n \r\n" * 5000 + b"0\r\n\r\n")
    assert b"64 on average" in answer
    assert front.triton.heard == []
    last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(REQUEST), REQUEST)
    some = front.ask(head + b"1\r\n \r\n" * 500 + last)
    assert b" 200 OK" in some
    assert front.triton.heard[0].endswith(b"  " + REQUEST)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 101 + b"\r\n",
    ],
)
def test_heads_are_bounded(front: Running, head: bytes) -> None:
    assert front.ask(head).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Content-Length: -1\r\n",
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_refused(front: Running, lines: bytes) -> None:
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\n".encode()
    assert b" 400 " in front.ask(head + lines + b"\r\n{}   \r\n\r\n")
    assert front.triton.heard == []


def test_tensors_behind_json_are_passed_on_and_only_the_json_is_looked_at(front: Running) -> None:
    raw = b"[" * 90_000
    tensor = {**TENSOR, "parameters": {"binary_data_size": len(raw)}}
    json_part = json.dumps({"inputs": [tensor]}).encode()
    headers = f"Inference-Header-Content-Length: {len(json_part)}"
    assert front.post(INFER, json_part + raw, headers)[0] == 200
    assert front.triton.heard[0].endswith(raw)
    for value in ("-1", "99999999", "x", "1\r\nInference-Header-Content-Length: 2"):
        status, _ = front.post(INFER, raw, f"Inference-Header-Content-Length: {value}")
        assert status == 400
    assert front.post(GENERATE, json_part + raw, headers)[0] == 400


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([{**TENSOR, "shape": [2]}], "request has shape [2], [1] is taken"),
        ([{**TENSOR, "shape": [2**63]}], "no list of whole numbers"),
        ([{**TENSOR, "shape": [-1]}], "no list of whole numbers"),
        ([{**TENSOR, "shape": [[1]]}], "no list of whole numbers"),
        ([{**TENSOR, "datatype": "FP32"}], "type 'FP32', BYTES is taken"),
        ([{**TENSOR, "datatype": 3}], "name and datatype are texts"),
        ([{**TENSOR, "name": "command"}], "unknown input 'command'; known are request"),
        ([TENSOR, TENSOR], "2 inputs are given, there are 1"),
        ([{**TENSOR, "parameters": {"shared_memory_region": "evil"}}], "closed here"),
        ([{**TENSOR, "parameters": {"binary_data_size": 10**9}}], "0 bytes come with them"),
        ([{**TENSOR, "parameters": {"binary_data_size": -1}}], "0 bytes come with them"),
        ([7], "no object"),
        (7, "inputs is no list"),
        ([], "'request' is missing"),
    ],
)
def test_tensors_that_are_not_the_config_s_end_at_the_front(
    front: Running, inputs: object, reason: str
) -> None:
    status, answer = front.post(INFER, json.dumps({"inputs": inputs}).encode())
    assert status == 400
    assert reason in error(answer)
    assert front.triton.heard == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"inputs":[{}],' + REQUEST[1:], "twice"),
        (REQUEST + b"x", "not JSON"),
        (b'{"inputs":"\xff"}', "not JSON"),
        (b"7", "no object with inputs"),
    ],
)
def test_json_that_two_parsers_could_read_in_two_ways_ends_at_the_front(
    front: Running, body: bytes, reason: str
) -> None:
    status, answer = front.post(INFER, body)
    assert (status, reason in error(answer)) == (400, True)
    assert front.triton.heard == []


def test_an_error_that_names_what_is_inside_is_replaced(front: Running) -> None:
    said = b'{"error":"Failed to increase the shared memory pool size for key \'legokv_1_a\'"}'
    front.triton.answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (
        len(said),
        said,
    )
    assert front.post(GENERATE, b"{}") == (
        400,
        b'{"error": "an internal error; the server\'s log has it"}',
    )


def test_an_error_in_a_stream_is_replaced_and_pieces_are_not(front: Running) -> None:
    piece = b'data: {"text_output":"data: {\\"error\\" /dev/shm legokv_1_a"}\n\n'
    said = b'data: {"error":"no memory at /dev/shm/legokv_1_a"}\n\n'
    front.triton.cut = True
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (piece, said, b""))
    front.triton.answer = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    status, answer = front.post(STREAM, b"{}")
    assert status == 200
    assert piece in answer
    assert b"internal error" in answer
    assert b"no memory" not in answer


def test_a_server_that_is_not_there_is_told_as_something_to_try_later(front: Running) -> None:
    front.triton.answer, front.triton.cut = b"", True
    status, answer = front.post(GENERATE, b"{}")
    assert status == 503
    assert "ask again in a few seconds" in error(answer)


def test_readiness_is_the_probe_s_and_new_requests_are_refused_when_told(front: Running) -> None:
    get = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert b" 200 OK" in front.ask(get)
    front.state.answering = False
    assert b" 503 " in front.ask(get)
    assert front.post(GENERATE, b"{}")[0] == 200
    front.state.refusal = "the server is stopping"
    status, answer = front.post(GENERATE, b"{}")
    assert (status, error(answer)) == (503, "the server is stopping")


def test_connections_past_the_bound_are_told_so(front: Running) -> None:
    held = [socket.create_connection(("127.0.0.1", front.port)) for _ in range(8)]
    time.sleep(0.2)
    answer = front.ask(b"")
    assert b" 503 " in answer
    assert b"8 connections are open" in answer
    for connection in held:
        connection.close()
    time.sleep(0.2)
    assert front.post(GENERATE, b"{}")[0] == 200


def test_a_head_or_body_that_does_not_come_ends_its_connection(
    front: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(bounds, "BODY_SECONDS", 0.3)
    post = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode()
    for begun, what in ((b"", b"headers"), (b"GET / HT", b"headers"), (post, b"body")):
        with socket.create_connection(("127.0.0.1", front.port), timeout=10) as slow:
            slow.sendall(begun)
            answer = slow.recv(65536)
        assert b" 408 " in answer
        assert b"the request's " + what in answer


def test_a_client_that_leaves_ends_its_request_at_triton(front: Running) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    front.triton.answer = head + b"Transfer-Encoding: chunked\r\n\r\n"
    head = f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as leaving:
        leaving.sendall(head)
        assert leaving.recv(100).startswith(b"HTTP/1.1 200 OK")
        assert front.triton.num_left == 0
    deadline = time.monotonic() + 5
    while not front.triton.num_left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert front.triton.num_left == 1

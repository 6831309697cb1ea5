"""What reaches Triton through the front over HTTP, and what comes back of it."""

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_triton import Running, running_front
from processes import soon

from legokv.errors import LegokvError
from legokv.serving.body_bounds import BODIES_AT_ONCE
from legokv.serving.error_codes import HTTP_STATUS
from legokv.serving.front import bounds
from legokv.serving.front.bounds import Bounds
from legokv.serving.front.grpc_front import _CODES
from legokv.serving.front.metrics_app import _own_lines

GENERATE = "/v2/models/generate/generate"
STREAM = "/v2/models/generate/generate_stream"
INFER = "/v2/models/documents/infer"
LIMIT = 100_000
TENSOR = {"name": "request", "shape": [1], "datatype": "BYTES"}
ASKED = b'{"text_input":"Who?"}'
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
        assert front.post(GENERATE, ASKED)[0] == 200
    assert len(front.triton.heard) == 5
    assert front.triton.num_connections == 1


def test_no_header_reaches_triton_but_those_it_needs(front: Running) -> None:
    front.post(GENERATE, ASKED, "X-Secret: a", "Accept-Encoding: gzip", "Cookie: b", "triton-x: c")
    (heard,) = front.triton.heard
    head, _, _ = heard.partition(b"\r\n\r\n")
    names = {line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
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
    status, answer = front.post(GENERATE, ASKED, "Content-Encoding: br")
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
        ([7], "an input or output is an object, not a whole number"),
        (7, "'inputs' is a list, not a whole number"),
        ([TENSOR], "'request' has neither of 'data' and the parameter 'binary_data_size': one"),
        (
            [{**TENSOR, "data": ["{}"], "parameters": {"binary_data_size": 0}}],
            "'request' has both of 'data' and the parameter 'binary_data_size': one is taken",
        ),
        ([{**TENSOR, "data": [["{}"]]}], "'request' takes a text, not a list"),
        ([{**TENSOR, "data": ["{}", "{}"]}], "2 values in data, its shape says 1"),
        ([{**TENSOR, "data": "{}"}], "'data' is a list, not a text"),
        ([{**TENSOR, "data": [None]}], "'request' takes a text, not null"),
        ([{**TENSOR, "dta": ["{}"]}], "unknown field 'dta'; known are data"),
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
        (b'{"inputs":"\xff"}', "not UTF-8: byte 0xff at offset 11 of 14"),
        (b"7", "a request is a JSON object, not a whole number"),
        (b'{"id":7,' + REQUEST[1:], "'id' takes a text, not a whole number"),
        (b'{"outputs":[{"name":"reply","parameters":{"classification":1}}],' + REQUEST[1:], "clos"),
        (b'{"id":"a\\u0000b",' + REQUEST[1:], "id has a zero byte at character 1"),
        (b'{"parameters":{"sequence_id":1},' + REQUEST[1:], "unknown field 'sequence_id'"),
    ],
)
def test_json_that_two_parsers_could_read_in_two_ways_ends_at_the_front(
    front: Running, body: bytes, reason: str
) -> None:
    status, answer = front.post(INFER, body)
    assert (status, reason in error(answer)) == (400, True)
    assert front.triton.heard == []


def test_a_documents_request_may_be_the_json_itself(front: Running) -> None:
    data = [{"operation": "create", "text": "Größe"}]
    body = json.dumps({"inputs": [{**TENSOR, "data": data}]}).encode()
    assert front.post(INFER, body)[0] == 200
    length = f"Inference-Header-Content-Length: {len(body)}"
    assert front.post(INFER, body, length)[0] == 200
    for heard in front.triton.heard:
        head, _, sent = heard.partition(b"\r\n\r\n")
        assert json.loads(json.loads(sent)["inputs"][0]["data"][0]) == data[0]
    assert f"inference-header-content-length: {len(sent)}" in head.decode()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"stop_words": [["a", "b"], "c"]}, "'stop_words' takes a text, not a list"),
        ({"stop_words": [1, "a"]}, "'stop_words' takes a text, not a whole number"),
        ({"stop_words": None}, "'stop_words' takes a text, not null"),
        ({"text_input": [["Who?"]]}, "'text_input' takes a text, not a list"),
        ({"text_input": {"a": 1}}, "'text_input' takes a text, not an object"),
        ({"text_input": "\ud800"}, "half a surrogate pair at character 0"),
        (
            {"max_tokens": 2**32 + 1},
            "'max_tokens' is 4294967297, outside -2147483648 to 2147483647",
        ),
        ({"max_tokens": 2.5}, "'max_tokens' takes a whole number, not a fraction"),
        ({"max_tokens": True}, "'max_tokens' takes a whole number, not true or false"),
        ({"max_tokens": [[2]]}, "'max_tokens' takes a whole number, not a list"),
        ({"max_tokens": [2, 3]}, "'max_tokens' has 2 values, it takes one"),
        ({"max_tokens": []}, "'max_tokens' has 0 values, it takes one"),
        ({"stop_token_ids": [1, 2**32 + 2]}, "'stop_token_ids' is 4294967298, outside"),
        ({"seed": -1}, "'seed' is -1, outside 0 to 18446744073709551615"),
        ({"temperature": 1e300}, "'temperature' is 1e+300, outside -3.4028234663852886e+38"),
        ({"temperature": 10**300}, "outside -3.4028234663852886e+38 to 3.4028234663852886e+38"),
        ({"temperature": 1e-60}, "1e-60, which a float32 can't tell from 0"),
        ({"temperature": "1"}, "'temperature' takes a number, not a text"),
        ({"stream": 0}, "'stream' takes true or false, not a whole number"),
        ({"id": "a\0b"}, "the request's id has a zero byte at character 1"),
        ({"parameters": {"id": "a\0"}}, "the request's id has a zero byte at character 1"),
        ({"id": 5}, "'id' takes a text, not a whole number"),
        ({"id": ["a"]}, "'id' takes a text, not a list"),
        ({"parameters": [1]}, "'parameters' is an object with fields, not a list"),
        ({"parameters": {"max_tokens": 2**40}}, "'max_tokens' is 1099511627776, outside"),
        ({"parameters": {"text_input": "b"}}, "'text_input' is there twice"),
        ({"triton_final": 1}, "unknown field 'triton_final'"),
        ({"parameters": {"priority": 1}}, "unknown field 'priority'"),
        ({"chat_template_kwargs": 5}, "'chat_template_kwargs' takes a text, not a whole number"),
    ],
)
def test_what_triton_would_flatten_wrap_or_round_ends_at_the_front(
    front: Running, fields: dict[str, object], reason: str
) -> None:
    body = json.dumps({"text_input": "Who?", **fields}).encode()
    for path in (GENERATE, STREAM):
        status, answer = front.post(path, body)
        assert (status, reason in error(answer)) == (400, True), error(answer)
    assert front.triton.heard == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"text_input":"a","top_k":1,"top_k":2}', "'top_k' twice"),
        (b'{"text_input":"a","temperature":NaN}', "NaN is no number"),
        (b'{"text_input":"a","temperature":1e999}', "'temperature' is inf, outside"),
        (b'{"text_input":"a","chat_template_kwargs":{"a":1e999}}', "past the range of a float64"),
        (b'{"text_input":"a","id":"\xff"}', "not UTF-8: byte 0xff at offset 24"),
        ('{"text_input":"a"}'.encode("utf-16"), "not UTF-8"),
        (b"[]", "a request is a JSON object, not a list"),
        (b'{"seed":' + b"1" * 401 + b"}", "a number of 401 digits, at most 400 are taken"),
        (b"", "the request is empty: JSON is taken"),
        (b" \n", "the request is empty: JSON is taken"),
        (b"null", "a request is a JSON object, not null"),
        (b"{}", "'text_input' is missing, or 'messages' in its place"),
        (b'{"id":"a","parameters":{"id":"b"}}', "'id' is there twice"),
        (b'{"id":"a","parameters":{}}', "'text_input' is missing, or 'messages' in its place"),
        (b'{"text_input":null}', "'text_input' takes a text, not null"),
    ],
)
def test_json_that_is_none_or_says_two_things_ends_at_the_front(
    front: Running, body: bytes, reason: str
) -> None:
    status, answer = front.post(GENERATE, body)
    assert (status, reason in error(answer)) == (400, True), error(answer)
    assert front.triton.heard == []


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_words": ["a", "b"], "max_tokens": [2], "stream": [False], "temperature": 1},
        {"stop_words": "", "stop_token_ids": 5, "seed": 2**64 - 1, "id": "a"},
        {"parameters": {"max_tokens": 2, "temperature": -0.0}, "chat_template_kwargs": "{}"},
        {"parameters": {}, "chat_template_kwargs": ["{}"], "document_ids": []},
    ],
)
def test_what_triton_reads_as_it_is_meant_is_passed_on_byte_for_byte(
    front: Running, fields: dict[str, object]
) -> None:
    body = json.dumps({"text_input": "Größe 👩‍🔬", **fields}, ensure_ascii=False).encode()
    assert front.post(GENERATE, body)[0] == 200
    assert front.triton.heard[0].endswith(b"\r\n\r\n" + body)


def test_messages_and_tools_may_be_json_too(front: Running) -> None:
    fields = {
        "messages": [{"role": "user", "content": "Größe?"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    assert front.post(GENERATE, json.dumps(fields).encode())[0] == 200
    sent = json.loads(front.triton.heard.pop().partition(b"\r\n\r\n")[2])
    assert {name: json.loads(sent[name]) for name in fields} == fields


def test_a_stream_is_asked_for_where_there_is_one(front: Running) -> None:
    for fields in ({"stream": True}, {"stream": [True]}, {"parameters": {"stream": True}}):
        body = json.dumps({"text_input": "Who?", **fields}).encode()
        status, answer = front.post(GENERATE, body)
        assert (status, "POST /v2/models/generate/generate_stream" in error(answer)) == (400, True)
        assert front.triton.heard == []
        assert front.post(STREAM, body)[0] == 200
        front.triton.heard.clear()


def test_a_field_of_json_may_be_the_json_itself(front: Running) -> None:
    given = {"enable_thinking": False, "name": "Größe"}
    for fields in (
        {"chat_template_kwargs": given},
        {"parameters": {"chat_template_kwargs": given}},
    ):
        body = json.dumps({"text_input": "Who?", **fields}, ensure_ascii=False).encode()
        assert front.post(STREAM, body)[0] == 200
        sent = json.loads(front.triton.heard.pop().partition(b"\r\n\r\n")[2])
        text = {**sent, **sent["parameters"]}["chat_template_kwargs"]
        assert (sent["text_input"], json.loads(text)) == ("Who?", given)


def test_an_error_that_names_what_is_inside_is_replaced(front: Running) -> None:
    said = b'{"error":"Failed to increase the shared memory pool size for key \'legokv_1_a\'"}'
    front.triton.answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (
        len(said),
        said,
    )
    assert front.post(GENERATE, ASKED) == (
        500,
        b'{"error": "an internal error; the server\'s log has it"}',
    )


def refused(code: str, sentence: str, before: bytes = b"", status: str = "400 Bad") -> bytes:
    """What Triton says of an error of our models: `generate`'s all have one status."""
    said = before + json.dumps({"error": f"legokv error {code} {sentence}"}).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(said)}\r\n\r\n".encode() + said


@pytest.mark.parametrize(("code", "status"), HTTP_STATUS.items())
def test_an_error_has_one_status_whichever_model_says_it(
    front: Running, code: str, status: int
) -> None:
    sentence = "no room for 'Größe' \u2028 at ½"
    front.triton.answer = refused(code, sentence)
    for path, body in ((GENERATE, ASKED), (INFER, REQUEST)):
        assert front.post(path, body) == (
            status,
            json.dumps({"error": sentence}, ensure_ascii=False).encode(),
        )
    front.triton.answer = refused(code, sentence, b"data: ")
    got, event = front.post(STREAM, ASKED)
    assert (got, json.loads(event.removeprefix(b"data: "))) == (status, {"error": sentence})


def test_every_code_of_an_error_has_a_status() -> None:
    kinds = [LegokvError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.code for kind in kinds} == set(HTTP_STATUS) == set(_CODES)


def test_an_error_in_a_stream_is_replaced_and_pieces_are_not(front: Running) -> None:
    piece = b'data: {"text_output":"data: {\\"error\\" /dev/shm legokv_1_a"}\n\n'
    said = b'data: {"error":"no memory at /dev/shm/legokv_1_a"}\n\n'
    front.triton.cut = True
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (piece, said, b""))
    front.triton.answer = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    status, answer = front.post(STREAM, ASKED)
    assert status == 200
    assert piece in answer
    assert b"internal error" in answer
    assert b"no memory" not in answer
    error_event = b'data: {"error":"legokv error UNAVAILABLE no pages"}\n\n'
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (piece, error_event, b""))
    front.triton.answer = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    assert front.post(STREAM, ASKED)[1].endswith(b'data: {"error": "no pages"}\n\n\r\n0\r\n\r\n')


def test_a_server_that_is_not_there_is_told_as_something_to_try_later(front: Running) -> None:
    front.triton.answer, front.triton.cut = b"", True
    status, answer = front.post(GENERATE, ASKED)
    assert status == 503
    assert "ask again in a few seconds" in error(answer)


def test_readiness_is_the_probe_s_and_new_requests_are_refused_when_told(front: Running) -> None:
    get = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert b" 200 OK" in front.ask(get)
    front.state.answering = False
    assert b" 503 " in front.ask(get)
    assert front.post(GENERATE, ASKED)[0] == 200
    front.state.refusal = "the server is stopping"
    status, answer = front.post(GENERATE, ASKED)
    assert (status, error(answer)) == (503, "the server is stopping")


def test_what_bodies_hold_is_given_back_when_their_requests_end(front: Running) -> None:
    body = json.dumps({"text_input": "x" * (LIMIT - 100)}).encode()
    for _ in range(2 * BODIES_AT_ONCE):
        assert front.post(GENERATE, body)[0] == 200


@pytest.mark.parametrize("offer", ["h2c", "websocket", "h2c\r\nupgrade:TLS/1.0"])
def test_a_request_that_offers_another_protocol_is_answered_in_this_one(
    front: Running, offer: str
) -> None:
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade, HTTP2-Settings\r\n"
    head += f"Upgrade: {offer}\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    whole = b"Content-Length: %d\r\n\r\n%b" % (len(ASKED), ASKED)
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ASKED), ASKED)
    for ending in (whole, chunked):
        answer = front.ask(head.encode() + ending)
        assert b" 200 " in answer.splitlines()[0], answer
        assert front.triton.heard[-1].endswith(ASKED)


def test_connections_past_the_bound_are_told_so(front: Running) -> None:
    held = [socket.create_connection(("127.0.0.1", front.port)) for _ in range(8)]
    answer = front.ask(b"")
    assert b" 503 " in answer
    assert b"8 connections are open" in answer
    for connection in held:
        connection.close()
    soon(lambda: front.post(GENERATE, ASKED)[0] == 200)


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
    head = f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ASKED)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as leaving:
        leaving.sendall(head + ASKED)
        assert leaving.recv(100).startswith(b"HTTP/1.1 200 OK")
        assert front.triton.num_left == 0
    soon(lambda: front.triton.num_left)
    assert front.triton.num_left == 1


def test_what_the_front_refuses_is_counted_by_its_code(front: Running) -> None:
    front.post(GENERATE, b"[]")
    front.post(GENERATE, b" " * (LIMIT + 1))
    front.ask(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n")
    front.post("/v2/models/engine/infer", b"{}")
    front.state.refusal = "the server is stopping"
    front.post(GENERATE, ASKED)
    counts = {code: number for code, number in front.state.num_refused.items() if number}
    assert counts == {"INVALID_ARG": 3, "NOT_FOUND": 1, "UNAVAILABLE": 1}
    lines = _own_lines(front.state).decode().splitlines()
    assert 'legokv_refused_requests_total{code="INVALID_ARG"} 3' in lines
    assert 'legokv_refused_requests_total{code="INTERNAL"} 0' in lines

"""Every kind of bad input gets a sentence with the numbers, and harms no other request."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from server import RunningServer, refusal, replies
from tritonclient.utils import InferenceServerException

UNKNOWN = "doc-000000000000000000000000"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"document_ids": [UNKNOWN]}, f"{UNKNOWN}.*namespace 'default'"),
        ({"text_input": ""}, "question is empty"),
        ({"text_input": b"\xff\xfe"}, "text_input.*UTF-8"),
        ({"text_input": "word " * 3000}, r"the prompt has \d{4} tokens.*2048"),
        ({"max_tokens": 0}, "max_tokens.* 0"),
        ({"max_tokens": -3}, "max_tokens.* -3"),
        ({"max_tokens": 5000}, "max_tokens 5000.*2048"),
        ({"max_tokens": 2**31 - 1}, "max_tokens 2147483647.*2048"),
        ({"link_tokens": -1}, "link_tokens.* -1"),
        ({"temperature": -1.0}, "temperature.*-1"),
        ({"top_p": 1.5}, r"top_p.*1\.5"),
        ({"top_k": -2}, "top_k.*-2"),
        (
            {"mode": "fast"},
            "legolink, spread, .*guided-drift, guided-ranked-drift, legolink-0.*fast",
        ),
        ({"namespace": "no spaces"}, "namespace.*no spaces"),
        ({"namespace": ""}, r"a namespace is 1 to 64 .* not '' \(0 characters\)"),
        ({"document_ids": [UNKNOWN] * 17}, "17.*16"),
    ],
)
def test_a_bad_question_is_refused_with_the_reason_and_the_next_is_answered(
    server: RunningServer, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        server.ask(**{"text_input": "Who?", **fields})
    assert_matches(message, refusal(refused.value)[1])
    assert server.ask(text_input="Who?", max_tokens=2)["generated_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"document_ids": [UNKNOWN]}, 404, UNKNOWN),
        ({"max_tokens": -3}, 400, "-3"),
        ({"mode": "/dev/shm"}, 400, "'mode' is one of legolink, .*, not '/dev/shm'"),
        ({"max_tokens": 2**32 + 1}, 400, "'max_tokens' is 4294967297"),
    ],
)
def test_a_refusal_over_http_is_a_client_error_with_the_reason(
    server: RunningServer, fields: dict[str, Any], code: int, reason: str
) -> None:
    body = json.dumps({"text_input": "Who?", **fields}).encode()
    for path in ("generate", "generate_stream"):
        status, reply = server.post(f"/v2/models/generate/{path}", body)
        assert status == code
        assert_matches(reason, json.loads(reply.removeprefix(b"data: "))["error"])


def test_documents_refuse_with_the_same_status_as_generate(server: RunningServer) -> None:
    for sent, code, reason in (
        ({"operation": "get", "id": UNKNOWN}, 404, UNKNOWN),
        ({"operation": "/dev/shm"}, 400, "unknown operation '/dev/shm'"),
    ):
        tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [sent]}
        body = json.dumps({"inputs": [tensor]}).encode()
        status, reply = server.post("/v2/models/documents/infer", body)
        assert (status, reason in json.loads(reply)["error"]) == (code, True)


def test_an_unknown_field_is_refused_over_http_with_the_known_ones(server: RunningServer) -> None:
    body = json.dumps({"text_input": "Who?", "beams": 4}).encode()
    status, reply = server.post("/v2/models/generate/generate", body)
    assert status == 400
    assert_matches("unknown field 'beams'; known are .*max_tokens", json.loads(reply)["error"])


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"text": ""}, "INVALID_ARGUMENT", "empty"),
        ({"text": " \n "}, "INVALID_ARGUMENT", "empty"),
        ({"text": 5}, "INVALID_ARGUMENT", "text"),
        ({"text": "word " * 1000}, "INVALID_ARGUMENT", "(5000|4999) bytes.*4000"),
        ({"text": "a", "ttl_seconds": -1}, "INVALID_ARGUMENT", "ttl_seconds.*-1"),
        ({"text": "a", "colour": 1}, "INVALID_ARGUMENT", "colour"),
        ({"text": "a", "namespace": "../x"}, "INVALID_ARGUMENT", "namespace"),
        ({"text": "a", "namespace": ""}, "INVALID_ARGUMENT", "a namespace is .* not ''"),
        ({"text": "a", "namespace": None}, "INVALID_ARGUMENT", "'namespace' is a text, not null"),
    ],
)
def test_a_bad_document_is_refused_with_the_reason_and_nothing_is_registered(
    server: RunningServer, fields: dict[str, Any], status: str, message: str
) -> None:
    before = server.document("list", limit=1000)["documents"]
    with pytest.raises(InferenceServerException) as refused:
        server.document("create", **fields)
    assert status in refusal(refused.value)[0]
    assert_matches(message, refusal(refused.value)[1])
    assert server.document("list", limit=1000)["documents"] == before


@pytest.mark.parametrize("body", [b'{"operation": "create", "text": "\xff"}', b"{", b"[]"])
def test_a_body_that_is_not_utf_8_json_is_refused(server: RunningServer, body: bytes) -> None:
    with pytest.raises(InferenceServerException) as refused:
        server.document_bytes(body)
    assert "INVALID_ARGUMENT" in refusal(refused.value)[0]


def test_another_namespace_s_document_is_not_found(server: RunningServer) -> None:
    (document_id,) = server.register(
        "The well of Vellin is nine metres deep.", namespace="tenant-a"
    )
    with pytest.raises(InferenceServerException, match=document_id):
        server.ask(text_input="How deep?", document_ids=[document_id], namespace="tenant-b")
    with pytest.raises(InferenceServerException, match=document_id):
        server.document("get", id=document_id, namespace="tenant-b")
    reply = server.ask(
        text_input="How deep?", document_ids=[document_id], namespace="tenant-a", max_tokens=2
    )
    assert reply["documents_linked"] == 1


def test_a_bad_request_disturbs_no_answer_that_is_under_way(
    server: RunningServer, documents: list[str], library: Callable[..., str]
) -> None:
    with server.client() as client:
        answer = replies(
            client, text_input="Who?", document_ids=documents[:2], max_tokens=60, stream=True
        )
        pieces = [next(answer)["text_output"]]
        for fields in ({"max_tokens": -1}, {"document_ids": [UNKNOWN]}, {"link_tokens": -9}):
            with pytest.raises(InferenceServerException):
                server.ask(text_input="Who?", **fields)
        pieces += [reply["text_output"] for reply in answer]
    assert "".join(pieces) == library("Who?", [0, 1], max_tokens=60)


def assert_matches(pattern: str, text: str) -> None:
    """A regular expression found in `text`, which is shown if not."""
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)

"""What clients send past the two models, or in other bytes than text, is refused with a sentence
and harms nobody.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from server import RunningServer, refusal, replies, serving, tensor
from tritonclient.utils import InferenceServerException

from legokv.serving.secret import SECRET_VARIABLE

SURROGATE = b"\xed\xa0\x80"


def command(server: RunningServer, secret: list[bytes], **fields: Any) -> tuple[str, str]:
    """What the engine model says to a client's command."""
    given = [tensor("secret", "BYTES", secret, batch=False)] if secret else []
    body = tensor("command", "BYTES", [json.dumps(fields).encode()], batch=False)
    with server.client() as client, pytest.raises(InferenceServerException) as refused:
        client.infer("engine", [*given, body])
    return refusal(refused.value)


def test_behind_the_front_there_is_no_engine_for_clients(server: RunningServer) -> None:
    status, sentence = command(server, [b""], type="Drop", keys=["0" * 64])
    assert "NOT_FOUND" in status
    assert "there is no model 'engine' here: documents and generate are" in sentence


def test_an_exposed_engine_refuses_a_client_s_command_whatever_it_is(
    engine_folder: Path, tmp_path: Path
) -> None:
    asked = {"text_input": "Who?", "max_tokens": 2}
    with serving(engine_folder, tmp_path, expose_triton="on") as exposed:
        exposed.ask(**asked)
        answers = {
            command(exposed, secret, **fields)
            for secret in ([b""], [b"0" * 64], [b"\xff" * 64])
            for fields in (
                {"type": "Drop", "keys": ["0" * 64]},
                {"type": "Compile", "namespace": "default", "token_ids": [1, 2, 3]},
                {"type": "Cancel", "request_id": "r"},
                {"type": "Nonsense"},
            )
        }
        ((status, sentence),) = answers
        assert "INVALID_ARGUMENT" in status
        assert "takes commands of its server's own models only" in sentence
        assert exposed.ask(**asked)["compiled_tokens"] == 0


def test_no_process_tells_its_secret(server: RunningServer) -> None:
    """Neither to its log nor to whoever may list processes, nor two servers the same one."""
    for number in server.processes():
        words = Path("/proc", str(number), "cmdline").read_bytes()
        environment = Path("/proc", str(number), "environ").read_bytes().split(b"\0")
        (secret,) = (
            line.partition(b"=")[2]
            for line in environment
            if line.startswith(f"{SECRET_VARIABLE}=".encode())
        )
        assert len(secret) == 64
        assert secret not in words
    assert SECRET_VARIABLE not in os.environ


@pytest.mark.parametrize("value", [3, True, "the"])
@pytest.mark.parametrize("name", ["document_ids", "stop_words", "repetition_penalty"])
def test_a_grpc_parameter_is_no_field(server: RunningServer, name: str, value: Any) -> None:
    with server.client() as client, pytest.raises(InferenceServerException) as refused:
        list(replies(client, text_input="Who?", max_tokens=2, parameters={name: value}))
    assert f"{name!r} came as a parameter of the request: send it as input" in str(refused.value)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"text_input": "%s"}', "the request is not UTF-8: byte 0xed at offset 16 of 21"),
        (b'{"text_input": "Who?", "id": "%s"}', "not UTF-8: byte 0xed at offset 30"),
        (b'{"text_input": "Who?", "x": "%s"}', "not UTF-8: byte 0xed at offset 29"),
        (b'{"text_input": "Who?", "document_ids": ["a", "%s"]}', "not UTF-8: byte 0xed"),
    ],
)
def test_bytes_that_are_no_utf_8_are_refused_with_a_sentence_over_http(
    server: RunningServer, body: bytes, sentence: str
) -> None:
    status, reply = server.post("/v2/models/generate/generate", body % SURROGATE)
    said = json.loads(reply)["error"]
    assert (status, "Traceback" in said, ".py" in said) == (400, False, False)
    assert sentence in said


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"%s","inputs":[{"name":"request","shape":[1],"datatype":"BYTES","data":["{}"]}]}',
        b'{"inputs":[{"name":"request","shape":[1],"datatype":"BYTES","data":["%s"]}]}',
        b'{"parameters":{"%s":1},"inputs":'
        b'[{"name":"request","shape":[1],"datatype":"BYTES","data":["{}"]}]}',
    ],
)
def test_bytes_that_are_no_utf_8_are_refused_by_documents_too(
    server: RunningServer, body: bytes
) -> None:
    status, reply = server.post("/v2/models/documents/infer", body % SURROGATE)
    said = reply.decode()
    assert (status, "Traceback" in said, ".py" in said) == (400, False, False)
    assert "UTF-8" in said

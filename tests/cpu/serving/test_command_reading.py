"""A command is read as strictly as a client's fields: each wrong one is refused with a reason."""

import json
from typing import Any

import pytest

from legokv.engine.request import AnswerOptions
from legokv.engine.sampling import SamplingOptions
from legokv.errors import InvalidRequest
from legokv.serving.command_reading import decode_command
from legokv.serving.messages import Generate, PromptSegment, encode_command

GENERATE = Generate(
    *("r1", "/tmp/socket", "default", (PromptSegment([1, 2], "ab"), PromptSegment([3]))),
    *(8, "legolink", 16, SamplingOptions(0.5, 3, 0.25), ("end",), AnswerOptions()),
)


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(encode_command(GENERATE)), **changes}).encode()


def chunk(token_ids):
    return [{"token_ids": token_ids, "key": "ab"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"type":"Fly"}',
        b'"Cancel"',
        b'{"type":["Drop"],"keys":[]}',
        b'{"type":"Drop","keys":[NaN]}',
        b'{"type":"Drop","keys":["a"],"keys":["b"]}',
        b"[" * 100_000,
        b'{"type":"Drop","keys":' + b"[" * 100_000,
    ],
)
def test_what_is_no_command_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a command"):
        decode_command(body)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"type": "Drop", "keys": "ab"}, "'keys' is a list, not a text"),
        ({"type": "Drop", "keys": [5]}, "'keys' is a list of texts, one of them is a whole number"),
        ({"type": "Drop", "keys": ["a" * 200]}, "a key of 200 characters, 1 to 128"),
        ({"type": "Drop", "keys": [""]}, "a key of 0 characters, 1 to 128"),
        ({"type": "Cancel", "request_id": "a" * 300}, "300 characters, at most 256"),
        ({"type": "Cancel", "request_id": ["a"]}, "'request_id' is a text, not a list"),
        ({"type": "Cancel", "request_id": "a", "more": 1}, "unknown field 'more'"),
        (
            {"type": "Compile", "namespace": "../../x\n", "segments": chunk([1])},
            "a namespace is 1 to 64",
        ),
        (
            {"type": "Compile", "namespace": "a" * 100_000, "segments": chunk([1])},
            "100000 characters",
        ),
        ({"type": "Compile", "namespace": None, "segments": chunk([1])}, "'namespace' is a text"),
        ({"type": "Compile", "segments": chunk([1])}, "'namespace' is missing"),
        (
            {"type": "Compile", "namespace": "a", "segments": chunk([1.5])},
            "a list of whole numbers",
        ),
        (
            {"type": "Compile", "namespace": "a", "segments": chunk([True])},
            "a list of whole numbers",
        ),
        (
            {"type": "Compile", "namespace": "a", "segments": chunk([-1])},
            "lie between 0 and 2147483647",
        ),
        ({"type": "Compile", "namespace": "a", "segments": chunk([2**31])}, "lie between 0 and"),
        (
            {"type": "Compile", "namespace": "a", "segments": chunk({"a": 1})},
            "a list, not an object",
        ),
        (
            {"type": "Warm", "namespace": "a", "segments": chunk([1]), "tier": "moon"},
            "is one of pool",
        ),
        ({"type": "Warm", "namespace": "a", "segments": chunk([1])}, "'tier' is missing"),
        (
            {"type": "Compile", "namespace": "a", "segments": []},
            "1 chunk or more, each with its key",
        ),
        (
            {"type": "Compile", "namespace": "a", "segments": [{"token_ids": [1]}]},
            "1 chunk or more, each with its key",
        ),
    ],
)
def test_a_command_s_wrong_field_is_refused_with_the_reason(
    command: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        decode_command(json.dumps(command).encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "'max_tokens' is 0, outside 1 to"),
        ({"max_tokens": "8"}, "'max_tokens' is a whole number, not a text"),
        ({"link_tokens": -1}, "'link_tokens' is -1, outside 0 to"),
        ({"mode": "fast"}, "'mode' is one of legolink"),
        ({"mode": None}, "'mode' is a text, not null"),
        ({"stop_words": [5]}, "'stop_words' is a list of texts, one of them is a whole number"),
        ({"stop_words": "end"}, "'stop_words' is a list, not a text"),
        ({"namespace": ""}, r"a namespace is 1 to 64 .* \(0 characters\)"),
        ({"reply_to": 5}, "'reply_to' is a text"),
        ({"segments": {"a": 1}}, "'segments' is a list, not an object"),
        ({"segments": [5]}, "a JSON object, not a whole number"),
        ({"segments": [{"token_ids": "abc"}]}, "'token_ids' is a list, not a text"),
        ({"segments": [{"token_ids": [1], "persistent": 1}]}, "'persistent' is true or false"),
        ({"segments": [{"token_ids": [1], "key": 7}]}, "'key' is a text"),
        ({"segments": [{"colour": 1}]}, "unknown field 'colour'"),
        ({"sampling": {"top_k": 1.5}}, "top_k is a whole number, not a fraction"),
        ({"sampling": {"repetition_penalty": 1e-320}}, "repetition_penalty is 0.01 to 100"),
        ({"sampling": {"temperature": "hot"}}, "temperature is a number, not a text"),
        ({"sampling": {"luck": 1}}, "unknown field 'luck'"),
        ({"sampling": [1]}, "a JSON object, not a list"),
        ({"answering": {"num_top_log_probs": 1.5}}, "num_top_log_probs is a whole number"),
        ({"answering": {"num_return_sequences": 10**6}}, "num_return_sequences is 1 to 128"),
        ({"answering": None}, "a JSON object, not null"),
    ],
)
def test_a_generate_command_s_wrong_field_is_refused_with_the_reason(
    changes: dict[str, object], message: str
) -> None:
    assert decode_command(changed()) == GENERATE
    with pytest.raises(InvalidRequest, match=message):
        decode_command(changed(**changes))

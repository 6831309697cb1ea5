"""Drawn bodies, always the same ones: none is answered with 500, and the log has no traceback."""

import http.client
import json
import random
from pathlib import Path
from typing import Any

import pytest
from gateway_world import running_gateway

from legokv.serving.gateway import fields
from legokv.serving.gateway.tool_reading import ToolForm

NUM_BODIES = 500
TOOL = {"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}
CALL = {"id": "a1", "type": "function", "function": {"name": "w", "arguments": "{}"}}
PARTS = [
    {"type": "text", "text": "x"},
    {"type": "file", "file": {"file_data": "Rmlyc3Qu", "filename": "a.txt"}},
    {"type": "file", "file": {"file_id": "file-000000000000000000000000"}},
]
DOCUMENT = {"type": "document", "source": {"type": "text", "data": "First."}, "title": "x"}
CHAT = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "x"},
        {"role": "user", "content": PARTS[:2]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a1", "content": "x"},
        {"role": "user", "content": "x"},
    ],
    "tools": [TOOL],
    "tool_choice": "auto",
    "documents": [{"title": "x", "text": "y"}],
    "max_tokens": 3,
    "stop": ["x"],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 1,
    "seed": 1,
    "temperature": 0.5,
    "stream": False,
    "link": {"mode": "legolink", "link_tokens": 2},
    "chat_template_kwargs": {},
}
MESSAGE = {
    "model": "tiny",
    "max_tokens": 3,
    "system": [{"type": "text", "text": "x"}],
    "messages": [
        {"role": "user", "content": [DOCUMENT, {"type": "text", "text": "x"}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "a", "name": "w", "input": {}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]},
    ],
    "tools": [{"name": "w", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "auto"},
    "stop_sequences": ["x"],
    "output_config": {},
}
BODIES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/messages", MESSAGE),
    ("/v1/completions", {"model": "tiny", "prompt": "x", "logprobs": 1, "stop": "x"}),
    ("/tokenize", {"prompt": "x", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [1, 2]}),
]
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e39, 1e300),
    *("", "x", "\ud800", "\0", "é" * 300, "x" * 5000, "data:,", "file-", "../..", "tiny"),
    *([], [[]], [None], ["x", 1], {}, {"type": "text"}, {"type": []}, {"a": {"b": [{}]}}),
    *({"type": "function"}, {"type": "json_schema"}, [{}], [{"role": "user"}], PARTS, [CALL]),
]


def changed(value: Any, draw: random.Random) -> Any:
    """The value with one place of it replaced, removed, or doubled."""
    if draw.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return draw.choice(STRANGE)
    if isinstance(value, list):
        place = draw.randrange(len(value))
        kind = draw.random()
        rest = [*value[:place], *value[place + 1 :]]
        if kind < 0.1:
            return rest
        if kind < 0.2:
            return value * draw.choice((2, 40))
        return [*value[:place], changed(value[place], draw), *value[place + 1 :]]
    name = draw.choice([*value, draw.choice([*fields.CHAT, *fields.ASKS_FOR_NOTHING, "colour"])])
    if draw.random() < 0.1:
        return {key: item for key, item in value.items() if key != name}
    return {**value, name: changed(value.get(name, "x"), draw)}


def body_of(value: Any, draw: random.Random) -> bytes:
    text = json.dumps(value).encode()
    kind = draw.random()
    if kind < 0.05:
        return text[: draw.randrange(len(text))]
    if kind < 0.1:
        return text.replace(b"x", draw.choice((b"\xff", b"\\", b'"', b"\\ud800")), 1)
    if kind < 0.12:
        return b"[" * draw.choice((10, 5000)) + text
    return text


def ask(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def test_no_drawn_body_is_a_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(16)
    statuses: dict[int, int] = {}
    with running_gateway(tmp_path, ToolForm.HERMES, max_question_bytes=4000) as gateway:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        for _ in range(NUM_BODIES):
            path, value = draw.choice(BODIES)
            for _ in range(draw.choice((1, 1, 2, 3))):
                value = changed(value, draw)
            body = body_of(value, draw)
            num_lines = len(caplog.records)
            status, answer = ask(connection, path, body)
            statuses[status] = statuses.get(status, 0) + 1
            assert status in (200, 400, 404, 409, 413, 422), (path, body[:2000], answer)
            lines = caplog.records[num_lines:]
            assert not any(record.exc_info for record in lines), body[:2000]
            if status != 200:
                error = json.loads(answer)["error"]
                assert error["message"]
                assert len(lines) <= 1, [record.message for record in lines]
        connection.close()
    # Most are refused, and enough are taken.
    assert statuses[200] > NUM_BODIES / 20
    assert statuses[400] > NUM_BODIES / 4

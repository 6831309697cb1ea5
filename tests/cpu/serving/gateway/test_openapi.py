"""OpenAPI is what the gateway does: every path, every field with its bounds, every reply."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from gateway_world import RunningGateway, running_gateway

from legokv.engine.sampling import NUMBER_BOUNDS
from legokv.serving.gateway import anthropic, facts, fields, files, openapi, turns
from legokv.serving.gateway.app import _routes
from legokv.serving.gateway.tool_calls import CHOICES
from legokv.serving.gateway.tool_reading import ToolForm

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Who?"}]}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "V"}}</tool_call>'
FORM = (
    b"--x\r\ncontent-disposition: form-data; name=purpose\r\n\r\nuser_data\r\n"
    b'--x\r\ncontent-disposition: form-data; name=file; filename="a.txt"\r\n\r\nOrrin.\r\n--x--\r\n'
)


@pytest.fixture(name="gateway")
def gateway_fixture(tmp_path: Path) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path, ToolForm.HERMES) as one:
        yield one


def sent(
    gateway: RunningGateway, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{gateway.url}{path}", data, method=method.upper(), headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def body_of(spec: Any, method: str, path: str) -> Any:
    (content,) = spec["paths"][path][method]["requestBody"]["content"].values()
    return content["schema"]


def check(spec: Any, operation: Any, status: int, reply: Any) -> None:
    """A reply is as the document says."""
    said = operation["responses"]["200" if status == 200 else "default"]
    schema = said["content"]["application/json"]["schema"]
    jsonschema.validate(reply, {**schema, "components": spec["components"]})


def test_every_served_path_is_described_and_no_other(tmp_path: Path) -> None:
    world: Any = None
    served = set()
    for route in _routes(world):
        path = re.sub(r"\{(\w+):path\}", r"{\1}", getattr(route, "path", ""))
        for method in {*(getattr(route, "methods", None) or ())} - {"HEAD"}:
            served.add((method.lower(), path))
    page = {"/", "/docs", "/openapi.json"}
    own = {(method, path) for method, path in served if path not in page and "/page" not in path}
    spec = openapi.spec()
    assert {(m, path) for path, item in spec["paths"].items() for m in item} == own
    assert tmp_path.is_dir()


def test_every_field_is_there_with_the_bounds_that_the_code_has() -> None:
    spec = openapi.spec()
    for path, table, others in (
        ("/v1/chat/completions", fields.CHAT, (*fields.WITHOUT_EFFECT, *fields.ASKS_FOR_NOTHING)),
        ("/v1/messages", anthropic.FIELDS, anthropic.OTHERS),
        ("/v1/files", files.FORM, ()),
        ("/tokenize", facts.TOKENIZE, ()),
    ):
        assert set(body_of(spec, "post", path)["properties"]) == {*table, *others}
    chat = body_of(spec, "post", "/v1/chat/completions")["properties"]
    for name, (low, high) in NUMBER_BOUNDS.items():
        least = chat[name].get("minimum", chat[name].get("exclusiveMinimum"))
        assert (least, chat[name]["maximum"]) == (low, high)
    message = chat["messages"]["items"]["properties"]
    assert message["role"]["enum"] == list(turns.ROLES)
    assert chat["tool_choice"]["anyOf"][0]["enum"] == list(CHOICES)
    assert chat["link"]["properties"]["mode"]["enum"][0] == "legolink"


def test_a_number_is_taken_at_its_described_bounds_and_refused_past_them(
    gateway: RunningGateway,
) -> None:
    spec = openapi.spec()
    properties = body_of(spec, "post", "/v1/chat/completions")["properties"]
    bounded = {name: schema for name, schema in properties.items() if "maximum" in schema}
    assert len(bounded) >= 14
    for name, schema in bounded.items():
        least = schema["minimum"] - 1 if "minimum" in schema else schema["exclusiveMinimum"]
        for past in (least, schema["maximum"] * 2 + 1):
            asked = {**ASKED, "logprobs": True, name: past}
            status, reply = sent(gateway, "post", "/v1/chat/completions", asked)
            assert (status, reply["error"]["param"]) == (400, name), (name, past)
        if schema["type"] == "number":
            asked = {**ASKED, "logprobs": True, name: 10**350}
            assert sent(gateway, "post", "/v1/chat/completions", asked)[0] == 400
        if name not in ("n", "max_tokens", "max_completion_tokens"):
            asked = {**ASKED, "logprobs": True, name: schema["maximum"]}
            assert sent(gateway, "post", "/v1/chat/completions", asked)[0] == 200, name


def test_what_is_described_as_required_is(gateway: RunningGateway) -> None:
    whole = {
        "/v1/chat/completions": ASKED,
        "/v1/completions": {"model": "tiny", "prompt": "Who"},
        "/v1/messages": {**ASKED, "max_tokens": 4},
        "/v1/messages/count_tokens": ASKED,
        "/tokenize": {"prompt": "Who?"},
    }
    spec = openapi.spec()
    for path, body in whole.items():
        schema = body_of(spec, "post", path)
        jsonschema.validate(body, schema)
        assert set(schema["required"]) == set(body)
        assert sent(gateway, "post", path, body)[0] == 200
        for name in body:
            fewer = {other: value for other, value in body.items() if other != name}
            assert sent(gateway, "post", path, fewer)[0] == 400, (path, name)
    parts = dict(zip(("purpose", "file"), FORM.split(b"--x\r\n")[1:], strict=True))
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert body_of(spec, "post", "/v1/files")["required"] == ["file", "purpose"]
    for part in parts.values():
        form = b"--x\r\n" + part.removesuffix(b"--x--\r\n") + b"--x--\r\n"
        assert sent(gateway, "post", "/v1/files", form, **kind)[0] == 400


def test_a_wrong_method_is_told_all_that_the_path_has(gateway: RunningGateway) -> None:
    for path, allow in (
        ("/v1/files", "GET, HEAD, POST"),
        ("/v1/files/file-1", "DELETE, GET, HEAD"),
        ("/v1/messages", "POST"),
    ):
        asked = urllib.request.Request(f"{gateway.url}{path}", method="PATCH")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=60)
        assert (refused.value.code, refused.value.headers.get_all("allow")) == (405, [allow])


@pytest.mark.parametrize("headers", [{}, {"anthropic-version": "2023-06-01"}])
def test_every_reply_is_as_it_is_described(
    gateway: RunningGateway, headers: dict[str, str]
) -> None:
    spec = openapi.spec()
    form = {**headers, "content-type": "multipart/form-data; boundary=x"}
    tool = {"type": "function", "function": {"name": "weather"}}
    own = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}
    gateway.models.pieces = ["I look. ", CALL]
    _, file = sent(gateway, "post", "/v1/files", FORM, **form)
    calls: list[tuple[str, str, str, Any]] = [
        ("post", "/v1/chat/completions", "", {**ASKED, "tools": [tool]}),
        ("post", "/v1/chat/completions", "", {**ASKED, "n": 2}),
        ("post", "/v1/completions", "", {"model": "tiny", "prompt": "Who"}),
        ("post", "/v1/messages", "", {**ASKED, "max_tokens": 9, "tools": [own]}),
        ("post", "/v1/messages/count_tokens", "", ASKED),
        ("post", "/v1/messages", "", {}),
        ("get", "/v1/models", "", None),
        ("get", "/v1/models/{model}", "/v1/models/tiny", None),
        ("get", "/v1/models/{model}", "/v1/models/other", None),
        ("get", "/v1/files", "", None),
        ("get", "/v1/files", "/v1/files?limit=0", None),
        ("get", "/v1/files/{file_id}", f"/v1/files/{file['id']}", None),
        ("delete", "/v1/files/{file_id}", f"/v1/files/{file['id']}", None),
        ("get", "/v1/files/{file_id}/content", f"/v1/files/{file['id']}/content", None),
        ("post", "/tokenize", "", {"prompt": "Who?", "return_token_strs": True}),
        ("post", "/detokenize", "", {"tokens": [5]}),
        ("get", "/health", "", None),
        ("get", "/ready", "", None),
        ("get", "/version", "", None),
    ]
    for method, path, address, body in calls:
        status, reply = sent(gateway, method, address or path, body, **headers)
        assert status < 500
        check(spec, spec["paths"][path][method], status, reply)


def test_the_page_of_the_paths_loads_nothing_and_shows_bounds(gateway: RunningGateway) -> None:
    with urllib.request.urlopen(f"{gateway.url}/docs", timeout=60) as response:
        page = response.read().decode()
    assert not re.search(r"(src|href)=\"?(https?:)?//|@import|url\(|<script|<link", page)
    assert "number, -2.0 to 2.0" in page
    for path in openapi.spec()["paths"]:
        assert path in page

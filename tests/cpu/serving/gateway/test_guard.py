"""What stands before the gateway: no path that reads or computes answers without a key."""

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from legokv.serving.api_keys import add_key
from legokv.serving.gateway.guard import Rules, guarded
from legokv.serving.gateway.keys import Accounts

Headers = Sequence[tuple[str, str]]
OPEN = Rules(None, (), 1000, local=True)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)["error"]
        return value


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says whose namespace it answers, and how long the body was."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    state = scope["state"]
    told = json.dumps([state["account"].namespace(), state["request_id"], length]).encode()
    headers = [(b"x-request-id", b"another")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


def ask(
    rules: Rules, path: str, headers: Headers = (), method: str = "GET", parts: Sequence[bytes] = ()
) -> Reply:
    """What a request of these headers and parts of a body gets."""
    bodies = [{"type": "http.request", "body": p, "more_body": True} for p in parts]
    incoming = [*bodies, {"type": "http.request", "body": b"", "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(guarded(app, rules)(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return Reply(sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, body)


@pytest.fixture(name="keyed")
def keyed_fixture(tmp_path: Path) -> tuple[Rules, str]:
    """Rules with keys, and one that may ask twice a minute."""
    key, _ = add_key(tmp_path / "k", "a", {"namespace": "own", "requests_per_minute": 2})
    return replace(OPEN, accounts=Accounts(tmp_path / "k")), key


PATHS = (
    *("/v1/chat/completions", "/v1/messages", "/v1/files", "/v1/models", "/metrics", "/openapi"),
    *("/tokenize", "/nothing", "//", "/health/", "/healthx", "/pagex", "/page", "", "/../health"),
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "DELETE"])
def test_without_a_key_no_path_but_the_open_ones_answers(
    path: str, method: str, keyed: tuple[Rules, str]
) -> None:
    reply = ask(keyed[0], path, method=method)
    assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert "asks for an API key" in reply.error["message"]


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/version", "/page/page.js"])
def test_what_says_nothing_of_documents_is_open(path: str, keyed: tuple[Rules, str]) -> None:
    assert ask(keyed[0], path).status == 200


def test_a_key_brings_its_namespace_and_its_limit(keyed: tuple[Rules, str]) -> None:
    rules, key = keyed
    bearer = [("Authorization", f"Bearer {key}")]
    assert json.loads(ask(rules, "/v1/models", bearer).body)[0] == "own"
    assert ask(rules, "/v1/models", [("X-API-Key", key)]).status == 200
    reply = ask(rules, "/v1/models", bearer)
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(reply.headers["retry-after"]) <= 30
    assert "2 requests a minute" in reply.error["message"]


def test_errors_have_the_shape_of_the_api_that_was_asked(keyed: tuple[Rules, str]) -> None:
    error = ask(keyed[0], "/v1/chat/completions", [("Authorization", "Bearer x")]).error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_api_key"
    reply = json.loads(ask(keyed[0], "/v1/messages").body)
    assert (reply["type"], reply["error"]["type"]) == ("error", "authentication_error")


def test_no_key_is_in_the_log(keyed: tuple[Rules, str], caplog: pytest.LogCaptureFixture) -> None:
    rules, key = keyed
    with caplog.at_level(logging.DEBUG):
        ask(rules, "/v1/models", [("Authorization", f"Bearer {key}x")])
        for _ in range(3):
            ask(rules, "/v1/models", [("Authorization", f"Bearer {key}")])
    assert '"key": "a"' in caplog.messages[-1]
    assert key not in caplog.text


def test_a_request_keeps_its_id_unless_no_log_could_have_it() -> None:
    reply = ask(OPEN, "/v1/models", [("X-Request-Id", "mine-1")])
    assert (reply.headers["x-request-id"], json.loads(reply.body)[1]) == ("mine-1", "mine-1")
    for wrong in ("a b", "x" * 129, "", "\x1b[31m", "é"):
        made = ask(OPEN, "/v1/models", [("X-Request-Id", wrong)]).headers["x-request-id"]
        assert len(made) == 32
    assert ask(OPEN, "/health").headers["x-request-id"]


def test_a_body_past_the_bound_is_not_read_to_its_end() -> None:
    assert json.loads(ask(OPEN, "/x", parts=[b"x" * 500] * 2).body)[2] == 1000
    for reply in (
        ask(OPEN, "/x", parts=[b"x" * 500] * 3),
        ask(OPEN, "/x", [("Content-Length", "1500")]),
        ask(OPEN, "/x", [("Content-Length", "1500" + "0" * 5000)]),
    ):
        assert (reply.status, reply.error["type"]) == (413, "invalid_request_error")
        assert re.search(r"has 1500* bytes or more, at most 1000 are taken", reply.error["message"])


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8080", None, 200),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", 200),
        ("[::1]:8080", "http://[::1]:8080", 200),
        ("localhost:8080", "https://evil.example", 403),
        ("localhost:8080", "http://localhost:3000", 403),
        ("localhost:8080", "null", 403),
        ("evil.example:8080", "http://evil.example:8080", 403),
        ("evil.example", None, 403),
        ("localhost:8080", "http://[", 403),
        ("localhost:8080", "http://localhost:8080@evil.example", 403),
        ("localhost:8080", "://", 403),
        ("localhost:8080", "\xe9", 403),
        ("[", None, 403),
        ("[::1", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("localhost:99999999", None, 200),
    ],
)
def test_without_keys_pages_of_other_sites_are_refused(
    host: str, origin: str | None, status: int
) -> None:
    headers = [("Host", host), *([("Origin", origin)] if origin else [])]
    assert ask(OPEN, "/v1/files", headers, "POST").status == status


def test_named_origins_may_ask_and_read() -> None:
    rules = replace(OPEN, origins=("https://ui.example",))
    headers = [("Host", "localhost"), ("Origin", "https://ui.example")]
    reply = ask(rules, "/v1/files", headers)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "https://ui.example"
    other = ask(rules, "/v1/files", [("Host", "localhost"), ("Origin", "https://no.example")])
    assert other.status == 403
    assert "access-control-allow-origin" not in other.headers
    asked = [*headers, ("Access-Control-Request-Method", "POST")]
    asked += [("Access-Control-Request-Headers", "authorization")]
    assert ask(rules, "/v1/files", asked, "OPTIONS").status == 200
    # Behind a proxy that keeps the host; browsers name no origin when a page reads from its own.
    assert ask(rules, "/v1/files", [("Host", "UI.example")]).status == 200
    assert ask(rules, "/v1/files", [("Host", "ui.example:81")]).status == 403
    anybody = replace(OPEN, origins=("*",))
    assert ask(anybody, "/x", [("Host", "a"), ("Origin", "https://any.example")]).status == 200


def test_with_keys_a_page_elsewhere_may_ask_by_its_key_and_reads_nothing_unless_named(
    keyed: tuple[Rules, str],
) -> None:
    rules, key = keyed
    headers = [("Host", "kv.example"), ("Origin", "https://ui.example"), ("X-API-Key", key)]
    reply = ask(rules, "/v1/files", headers)
    assert reply.status == 200
    assert "access-control-allow-origin" not in reply.headers

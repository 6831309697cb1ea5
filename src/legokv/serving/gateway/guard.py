"""What stands before every path of the gateway: request ids, origins, keys, sizes (ASGI).

All that is not named here as open needs a key where there are keys, also paths that do not exist.
"""

import ipaddress
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware

from legokv.errors import ApiRefused, KeyMissing, NotAllowed, RateLimited
from legokv.serving.gateway.keys import Account, Accounts, credentials_in
from legokv.serving.log import MAX_ID_LEN, RequestLine

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = {"/", "/health", "/ready", "/version"}
"""Paths that answer without a key: they say nothing of documents, and compute nothing."""
OPEN_FOLDER = "/page/"
REQUEST_ID = b"x-request-id"
ANY_ORIGIN = "*"
_ID = re.compile(rf"[!-~]{{1,{MAX_ID_LEN}}}", re.ASCII)
_ALLOWED_METHODS = ("GET", "POST", "DELETE")
_SHOWN_HEADERS = ("X-Request-Id", "Retry-After")
_BODY_SENTENCE = "the request has {} bytes or more, at most {} are taken (--max-request-bytes)"


@dataclass(frozen=True)
class Rules:
    """What is taken of whom. `accounts` None: no keys. `local`: none but this machine's programs
    reach the port, so a page that says it stands elsewhere is a stranger's.
    """

    accounts: Accounts | None
    origins: tuple[str, ...]
    request_bytes: int
    local: bool


def guarded(app: App, rules: Rules) -> App:
    """The app behind the guard, and behind CORS for the pages of the rules' origins.

    The app finds its Account and the request's id in the scope's `state`.
    """
    guard = Guard(app, rules)
    if not rules.origins:
        return guard
    return CORSMiddleware(
        guard,
        allow_origins=rules.origins,
        allow_methods=_ALLOWED_METHODS,
        allow_headers=["*"],
        expose_headers=_SHOWN_HEADERS,
        max_age=600,
    )


class Guard:
    """The middleware. One for all requests."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "no websockets, no lifespan"
        request_id = _request_id(scope["headers"])
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                kept = [h for h in message.get("headers", ()) if h[0].lower() != REQUEST_ID]
                message = {**message, "headers": [*kept, (REQUEST_ID, request_id.encode())]}
            await send(message)

        account = Account()
        try:
            account = self._account(scope)
            account.count_request()
            state = {**scope.get("state", {}), "account": account, "request_id": request_id}
            body = _Body(receive, self._rules.request_bytes)
            body.check_declared(scope["headers"])
            await self._app({**scope, "state": state}, body.receive, send_on)
        except ApiRefused as error:
            facts: dict[str, object] = {"key": account.name} if account.name else {}
            RequestLine("gateway", request_id, facts).failed(error)
            if not begun:
                await refuse(scope["path"], error, send_on)

    def _account(self, scope: Message) -> Account:
        accounts, headers = self._rules.accounts, scope["headers"]
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            return Account()
        if accounts is None:
            self._check_page(headers)
            return Account()
        account = accounts.of(credentials_in(headers))
        return account

    def _check_page(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """NotAllowed if a browser says that another site's page asks: nothing else keeps it off.

        A name that its owner lets point at this machine is no better than another site.
        """
        host = _value(headers, b"host")
        origin = _value(headers, b"origin")
        allowed = self._rules.origins
        if ANY_ORIGIN in allowed or (origin and origin in allowed):
            return
        if origin and urlsplit(origin).netloc != host:
            raise NotAllowed(
                f"pages of {origin[:200]!r} may not ask here: --api-origins names those that may"
            )
        if self._rules.local and host and not _is_this_machine(host):
            raise NotAllowed(
                f"this server is for its own machine, which {host[:200]!r} does not name: "
                "--api-origins names other addresses it has"
            )


class _Body:
    """A request's body, which is not read past its bound."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._num_bytes = 0

    def check_declared(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        declared = _value(headers, b"content-length")
        self._check(int(declared) if declared.isdecimal() else 0)

    async def receive(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        self._check(self._num_bytes)
        return message

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._most:
            sentence = _BODY_SENTENCE.format(num_bytes, self._most)
            raise ApiRefused(sentence, 413, kind="request_too_large")


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's, if it is one that a log can have, else a new one."""
    chosen = _value(headers, REQUEST_ID)
    return chosen if _ID.fullmatch(chosen) else uuid.uuid4().hex


def _value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def _is_this_machine(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


_KINDS = {403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_KINDS = {**_KINDS, 401: "authentication_error", 413: "request_too_large"}
_WRONG = "invalid_request_error"


async def refuse(path: str, error: ApiRefused, send: Send) -> None:
    """Tell the client in the shape of the API that it speaks."""
    content: dict[str, object]
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_KINDS.get(error.status, _WRONG)
        content = {"type": "error", "error": {"type": kind, "message": str(error)}}
    else:
        kind = _KINDS.get(error.status, _WRONG)
        facts = {"message": str(error), "type": kind, "param": error.param, "code": error.kind}
        content = {"error": facts}
    body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if isinstance(error, KeyMissing):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, RateLimited):
        headers.append((b"retry-after", b"%d" % error.retry_after_seconds))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

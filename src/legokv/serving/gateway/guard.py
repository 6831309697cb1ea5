"""What stands before every path of the gateway: request ids, origins, keys, sizes (ASGI).

All that is not named here as open needs a key where there are keys, also paths that do not exist.
"""

import ipaddress
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

from legokv.errors import ApiRefused, NotAllowed, RequestTooLarge
from legokv.serving.gateway.accounts import Account, Everybody
from legokv.serving.gateway.keys import Accounts, KeyAccount, credentials_in
from legokv.serving.gateway.refusals import refusal
from legokv.serving.log import MAX_ID_LEN, RequestLine

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = {"/", "/health", "/ready", "/version", "/docs", "/openapi.json"}
"""Paths that answer without a key: they say nothing of documents, and compute nothing."""
OPEN_FOLDER = "/page/"
REQUEST_ID = b"x-request-id"
ANY_ORIGIN = "*"
_ID = re.compile(rf"[!-~]{{1,{MAX_ID_LEN}}}", re.ASCII)
_MAX_DIGITS = 18
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
        request_id = request_id_of(scope["headers"])
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                kept = [h for h in message.get("headers", ()) if h[0].lower() != REQUEST_ID]
                message = {**message, "headers": [*kept, (REQUEST_ID, request_id.encode())]}
            await send(message)

        account: Account = Everybody()
        try:
            account = self._account(scope)
            if isinstance(account, KeyAccount):
                account.count_request()
            state = {**scope.get("state", {}), "account": account, "request_id": request_id}
            body = _Body(receive, self._rules.request_bytes)
            body.check_declared(scope["headers"])
            await self._app({**scope, "state": state}, body.receive, send_on)
        except (ApiRefused, RequestTooLarge) as error:
            name = account.key.name if isinstance(account, KeyAccount) else None
            facts: dict[str, object] = {"key": name} if name else {}
            RequestLine("gateway", request_id, facts).failed(error)
            if not begun:
                refused = {**scope, "state": {"request_id": request_id}}
                await refusal(Request(refused), error)(refused, receive, send_on)

    def _account(self, scope: Message) -> Account:
        accounts, headers = self._rules.accounts, scope["headers"]
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            return Everybody()
        if accounts is None:
            self._check_page(headers)
            return Everybody()
        return accounts.of(credentials_in(headers))

    def _check_page(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """NotAllowed if a browser says that another site's page asks: nothing else keeps it off.

        A name that its owner lets point at this machine is no better than another site.
        """
        host = _value(headers, b"host").lower()
        origin = _value(headers, b"origin")
        allowed = self._rules.origins
        if ANY_ORIGIN in allowed or (origin and origin in allowed):
            return
        if origin and _address(origin) != host:
            raise NotAllowed(
                f"pages of {origin[:200]!r} may not ask here: --api-origins names those that may"
            )
        own = host in map(_address, allowed) or _is_this_machine(host)
        if self._rules.local and host and not own:
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
        self._check(int(declared[:_MAX_DIGITS]) if declared.isdecimal() else 0)

    async def receive(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        self._check(self._num_bytes)
        return message

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._most:
            raise RequestTooLarge(_BODY_SENTENCE.format(num_bytes, self._most))


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's, if it is one that a log can have, else a new one."""
    chosen = _value(headers, REQUEST_ID)
    return chosen if _ID.fullmatch(chosen) else uuid.uuid4().hex


def _value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def _address(origin: str) -> str:
    """The host and port of a site, which is written without a path."""
    return origin.partition("://")[2].lower()


def _is_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")

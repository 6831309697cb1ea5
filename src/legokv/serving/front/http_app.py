"""Triton's HTTP as clients get it: checked, bounded, passed on, and byte for byte else (ASGI)."""

import asyncio
import json
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from legokv.errors import (
    AnswerBroken,
    Busy,
    InvalidRequest,
    LegokvError,
    PathClosed,
    RequestTooLarge,
)
from legokv.serving.body_bounds import (
    BODIES_AT_ONCE,
    SMALL_BODY_BYTES,
    HeldBodies,
    check_json,
)
from legokv.serving.error_codes import HTTP_STATUS
from legokv.serving.front import bounds
from legokv.serving.front.infer_check import check_infer
from legokv.serving.front.internals import (
    EVENT,
    FAULT,
    STARTING,
    Internals,
    is_unreadable_body,
    sentence_in,
)
from legokv.serving.front.json_check import check_generate
from legokv.serving.front.routes import Kind, kind_of
from legokv.serving.front.state import State
from legokv.serving.front.tensor_check import Model
from legokv.serving.front.upstream import Response, Upstream

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger(__name__)

_LENGTH = b"inference-header-content-length"
_PASSED_ON = (b"content-type", _LENGTH)
_PASSED_BACK = (b"content-type", b"content-length", _LENGTH)
_MAX_DIGITS = 15
_EVENT_OF_ERROR = EVENT + b'{"error"'


@dataclass
class HttpFront:
    """The app. One for all requests; nothing of a request is left in it."""

    limits: bounds.Bounds
    upstream: Upstream
    internals: Internals
    state: State
    models: Mapping[str, Model]
    _held: HeldBodies = field(init=False)

    def __post_init__(self) -> None:
        self._held = HeldBodies(BODIES_AT_ONCE * self.limits.request_bytes)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "no websockets, no lifespan"
        request = _Request(self, scope, receive, send)
        try:
            await request.answer()
        except AnswerBroken:
            return
        except LegokvError as error:
            await request.refuse(error)
        except ConnectionResetError as error:
            log.warning("%s", error)
            await request.refuse(Busy(STARTING))
        except Exception:
            # The boundary of one request: a fault of ours reaches its client and the log alone.
            log.exception("a fault in a request at the front")
            await request.refuse(LegokvError(FAULT))
        finally:
            self._held.num_bytes -= request.num_bytes_held


class _Request:
    """One request under way."""

    def __init__(self, front: HttpFront, scope: Message, receive: Receive, send: Send) -> None:
        self._front = front
        self._scope = scope
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send_message = send
        self._path = scope["raw_path"].decode("ascii", "replace")
        self._begun = False
        self._more_body = True
        self._client_left = False
        self.num_bytes_held = 0

    async def answer(self) -> None:
        """Answer the request; raises what it is refused with, before anything was sent."""
        kind = kind_of(self._scope["method"], self._path)
        state = self._front.state
        if kind is Kind.READY and not state.ready:
            await self._say(HTTPStatus.SERVICE_UNAVAILABLE, state.reason())
            return
        body = b""
        if kind in (Kind.INFER, Kind.GENERATE):
            state.check_taking()
            body = await self._body()
            text = self._json_part(kind, body)
            check_json(text)
            if len(text) > SMALL_BODY_BYTES:
                await asyncio.sleep(0)  # others have their turn between two looks at a long one
            model = self._front.models[self._path.split("/")[3]]
            if kind is Kind.INFER:
                json_part = check_infer(text, model, len(body) - len(text))
            else:
                streamed = self._path.endswith("/generate_stream")
                json_part = check_generate(text, model, streamed=streamed)
            with state.one_open():
                await self._pass_on(json_part + body[len(text) :], len(json_part))
        else:
            await self._pass_on(body)

    async def refuse(self, error: LegokvError) -> None:
        """Tell the client and the log; too late for the client if its answer has begun."""
        self._front.state.note_refusal(error)
        if not self._begun:
            await self._discard()
            if isinstance(error, PathClosed):
                status = error.status
            elif isinstance(error, RequestTooLarge):
                status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            else:
                status = HTTP_STATUS[error.code]
            await self._say(status, str(error))

    async def _discard(self) -> None:
        """Read what the client still sends, for else many see a reset in place of the answer.

        The connection's own bounds on bytes and time end it; a body that says it is beyond them is
        not waited for.
        """
        lengths = [int(value) for key, value in self._headers if key == b"content-length"]
        beyond = max(lengths, default=0) > 2 * self._front.limits.request_bytes
        waits = any(key == b"expect" for key, _ in self._headers)
        while self._more_body and not waits and not beyond:
            message = await self._receive()
            self._more_body = message.get("more_body", False)

    async def _body(self) -> bytes:
        declared = self._header(b"content-length")
        if declared is not None and int(declared) > self._front.limits.request_bytes:
            raise self._too_large(int(declared))
        parts = []
        while self._more_body:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise AnswerBroken("the client or the server is gone")
            parts.append(message["body"])
            self._more_body = message["more_body"]
            self._hold(len(message["body"]))
        return self._decoded(b"".join(parts))

    def _hold(self, num_bytes: int) -> None:
        held = self._front._held
        self.num_bytes_held += num_bytes
        held.num_bytes += num_bytes
        if self.num_bytes_held > self._front.limits.request_bytes:
            raise self._too_large(self.num_bytes_held)
        held.check(self.num_bytes_held)

    def _too_large(self, num_bytes: int) -> RequestTooLarge:
        return RequestTooLarge(
            f"the request has {num_bytes} bytes or more, at most {self._front.limits.request_bytes}"
            " are taken (--max-request-bytes)"
        )

    def _decoded(self, body: bytes) -> bytes:
        coding = self._header(b"content-encoding")
        if coding is None or coding == b"identity":
            return body
        if coding not in (b"gzip", b"deflate"):
            raise InvalidRequest(f"content-encoding is gzip, deflate or identity, not {coding!r}")
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            plain = decoder.decompress(body, self._front.limits.request_bytes + 1)
        except zlib.error as error:
            raise InvalidRequest(f"the body is no {coding.decode()}: {error}") from None
        if not decoder.eof and not decoder.unconsumed_tail:
            raise InvalidRequest(f"the body ends within its {coding.decode()}")
        self._hold(len(plain))
        return plain

    def _json_part(self, kind: Kind, body: bytes) -> bytes:
        """What Triton would parse of the body: all of it, or what stands before tensors' bytes."""
        length = self._header(_LENGTH)
        if kind is Kind.GENERATE or length is None:
            return body
        if not length.isdigit() or len(length) > _MAX_DIGITS or int(length) > len(body):
            raise InvalidRequest(
                f"inference-header-content-length is {length[:20]!r}, the body has {len(body)} "
                "bytes"
            )
        return body[: int(length)]

    def _header(self, name: bytes) -> bytes | None:
        """A header's one value; InvalidRequest if there are two."""
        values = [value for key, value in self._headers if key == name]
        if len(values) > 1:
            raise InvalidRequest(f"there are {len(values)} headers {name.decode()}")
        return values[0] if values else None

    async def _pass_on(self, body: bytes, json_len: int = 0) -> None:
        headers = {
            key.decode(): value.decode("latin-1")
            for key, value in self._headers
            if key in _PASSED_ON
        }
        if _LENGTH.decode() in headers:
            headers[_LENGTH.decode()] = str(json_len)
        asking = asyncio.current_task()
        assert asking is not None, "uvicorn runs each request in a task"
        leaving = asyncio.ensure_future(self._client_leaves(asking))
        try:
            await self._answered(self._scope["method"], headers, body)
        except asyncio.CancelledError:
            if not self._client_left:
                raise
            asking.uncancel()
            raise AnswerBroken("the client is gone") from None
        finally:
            leaving.cancel()

    async def _client_leaves(self, asking: "asyncio.Task[Any]") -> None:
        """Cancel the task when its client has gone away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._client_left = True
        asking.cancel()

    async def _answered(self, method: str, headers: dict[str, str], body: bytes) -> None:
        try:
            async with self._front.upstream.request(method, self._path, headers, body) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    await self._error(response.status, await response.read())
                else:
                    await self._pass_back(response)
        except OSError:
            if self._begun:
                # The client must not take what it has for all of it.
                raise ConnectionResetError(
                    "the server was lost in the midst of an answer"
                ) from None
            raise Busy(STARTING) from None

    async def _pass_back(self, response: Response) -> None:
        kept = [(name, response.headers[name]) for name in _PASSED_BACK if name in response.headers]
        await self._begin(response.status, kept)
        streamed = response.headers.get(b"content-type", b"").startswith(b"text/event-stream")
        events = _Events() if streamed else None
        async for part in response.parts():
            if events is not None:
                part = self._checked(events.whole(part))
            if part:
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
        rest = b"" if events is None else self._checked(events.rest)
        await self._send({"type": "http.response.body", "body": rest})

    def _checked(self, events: bytes) -> bytes:
        """Events with errors that name what is inside replaced."""
        if _EVENT_OF_ERROR not in events:
            return events
        lines = events.split(b"\n")
        for number, line in enumerate(lines):
            if line.startswith(_EVENT_OF_ERROR):
                lines[number] = _event(self._front.internals.shown(sentence_in(line)).sentence)
        return b"\n".join(lines)

    async def _error(self, status: int, body: bytes) -> None:
        text = sentence_in(body)
        client_error = self._front.internals.shown(text)
        if client_error.code:
            status = HTTP_STATUS[client_error.code]
        elif is_unreadable_body(text):
            status = HTTPStatus.BAD_REQUEST
        if body.startswith(_EVENT_OF_ERROR):
            body = _event(client_error.sentence) + b"\n\n"
        elif client_error.sentence != text:
            body = _error_body(client_error.sentence)
        await self._whole(status, body)

    async def _say(self, status: int, sentence: str) -> None:
        await self._whole(status, _error_body(sentence))

    async def _whole(self, status: int, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._begin(status, headers)
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(bounds.WRITE_SECONDS):
                await self._send_message(message)
        except TimeoutError:
            raise AnswerBroken("the client or the server is gone") from None


class _Events:
    """Cuts a stream of server-sent events into whole ones."""

    def __init__(self) -> None:
        self.rest = b""

    def whole(self, part: bytes) -> bytes:
        """All events that are whole with this part of the stream."""
        if not self.rest and part.endswith(b"\n\n"):
            return part
        whole, end, self.rest = (self.rest + part).rpartition(b"\n\n")
        return whole + end


def _event(sentence: str) -> bytes:
    return EVENT + _error_body(sentence)


def _error_body(sentence: str) -> bytes:
    return json.dumps({"error": sentence}, ensure_ascii=False).encode()

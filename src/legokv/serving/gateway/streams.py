"""Server-sent events to one client: what it does not take in time ends its stream, no other."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from legokv.errors import AnswerBroken, LegokvError
from legokv.serving.gateway.models import IN_LOG, json_text
from legokv.serving.log import RequestLine

WRITE_SECONDS = 60.0
"""Longest that a client may take nothing of its stream."""
LAST_WORD_SECONDS = 5.0
"""And longest until it has taken why its stream ended."""

log = logging.getLogger(__name__)

Events = AsyncGenerator[bytes, None]
LastWord = Callable[[LegokvError], bytes]


def note_failure(line: RequestLine, error: LegokvError) -> None:
    """Write a request's line, unless the model that refused it has written one."""
    if IN_LOG not in getattr(error, "__notes__", ()):
        line.failed(error)


def event(data: Any, name: str = "") -> bytes:
    """One event; `name` is its kind, where a client reads kinds."""
    text = json_text(data)
    return f"event: {name}\ndata: {text}\n\n".encode() if name else f"data: {text}\n\n".encode()


class EventStream(Response):
    """Sends events as they come, one in memory at a time.

    The events are closed when the client leaves. `last_word` makes the event that tells an error
    which comes while they are made.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, last_word: LastWord, line: RequestLine) -> None:
        self._events = events
        self._last_word = last_word
        self._line = line
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send))
        leaving = asyncio.ensure_future(_client_leaves(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            leaving.cancel()
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending

    async def _send_all(self, send: Send) -> None:
        begin = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            async with aclosing(self._events) as events:
                await send(begin)
                async for part in events:
                    await _within(WRITE_SECONDS, send, part)
        except (LegokvError, TimeoutError) as error:
            await self._tell(error, send)
        except Exception:
            # The boundary of one request: a fault of ours reaches its client and the log alone.
            log.exception("a fault in a stream of request %s", self._line.request_id)
            await self._tell(LegokvError("an internal error; the server's log has it"), send)
        with suppress(TimeoutError):
            await _within(LAST_WORD_SECONDS, send, b"", more=False)

    async def _tell(self, error: Exception, send: Send) -> None:
        if not isinstance(error, LegokvError):
            error = AnswerBroken(f"the client took nothing of its stream for {WRITE_SECONDS:g} s")
        note_failure(self._line, error)
        with suppress(TimeoutError):
            await _within(LAST_WORD_SECONDS, send, self._last_word(error))


async def _within(seconds: float, send: Send, body: bytes, *, more: bool = True) -> None:
    async with asyncio.timeout(seconds):
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

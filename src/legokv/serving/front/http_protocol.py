"""HTTP as uvicorn speaks it, with bounds on heads, chunks and time, which it has not.

httptools calls the `on_` methods while bytes are parsed; an error raised there ends the connection
with a refusal.
"""

import asyncio
import json
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from legokv.errors import HttpRefused
from legokv.serving.front import bounds
from legokv.serving.front.state import State


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Subclasses are made by `bounded_protocol`, which says how many there are."""

    max_connections: int
    max_body_bytes: int
    state: State

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._refusal = HttpRefused("this is not HTTP/1.1")
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = self._num_headers = self._num_chunks = 0
        self._body_bytes = self._wire_bytes = 0
        self._in_head = True
        self._head_again = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            sentence = f"{self.max_connections} connections are open, and more are not taken"
            self._refuse(HttpRefused(sentence, 503))
        else:
            self._set_deadline(bounds.HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._wire_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._in_head and self._wire_bytes > bounds.MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        elif self._wire_bytes > 3 * self.max_body_bytes + bounds.MAX_HEAD_BYTES + len(data):
            # What follows a refused body's bound is not read to its end.
            self.transport.abort()

    def on_message_begin(self) -> None:
        self._head_bytes = self._num_headers = self._num_chunks = 0
        self._body_bytes = self._wire_bytes = 0
        self._in_head = True
        if self._deadline is None:
            self._set_deadline(bounds.HEAD_SECONDS)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        self._count_head(len(name) + len(value))
        # After the body come trailers, which nobody reads.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._head_again = self._head_without_offer()
            return
        self._in_head = False
        self._set_deadline(bounds.BODY_SECONDS)
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._num_chunks += 1
        spare = self._num_chunks - bounds.FREE_CHUNKS
        if spare > 0 and self._body_bytes < spare * bounds.MIN_CHUNK_BYTES:
            self._raise(
                HttpRefused(
                    f"{self._num_chunks} chunks have {self._body_bytes} bytes: past "
                    f"{bounds.FREE_CHUNKS} chunks, each has {bounds.MIN_CHUNK_BYTES} on average",
                )
            )

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._head_again:
            return
        self._clear_deadline()
        super().on_message_complete()

    def _parse(self, data: bytes) -> None:
        """Have all of it parsed; a head that offers another protocol a second time, without that.

        Java's client offers HTTP/2 so in its first request, curl when asked for it. Whoever does
        not take it goes on in HTTP/1.1; httptools leaves the body out.
        """
        pieces = [memoryview(data)]
        while pieces:
            piece = pieces.pop()
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserError:
                self._refuse(self._refusal)
                return
            except httptools.HttpParserUpgrade as offer:
                if self._head_again:
                    pieces += [piece[offer.args[0] :], memoryview(self._head_again)]
                    self._head_again = b""
                    # The one that was offered it holds the request for whole.
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b: %b" % line for line in self.headers if line[0] != b"upgrade"]
        return b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *lines, b"", b""])

    def _count_head(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > bounds.MAX_HEAD_BYTES or self._num_headers > bounds.MAX_HEADERS:
            self._raise(_head_too_large())

    def _raise(self, refusal: HttpRefused) -> None:
        # httptools raises its own error for one that a callback raised.
        self._refusal = refusal
        raise refusal

    def _refuse(self, refusal: HttpRefused) -> None:
        if not self.transport.is_closing():
            # Not logged: what is no request costs its sender nothing, and a line the server's disk.
            self.state.num_refused[refusal.code] += 1
        body = json.dumps({"error": str(refusal)}).encode()
        lines = (
            STATUS_LINE[refusal.status],
            b"content-type: application/json\r\nconnection: close\r\n",
            b"content-length: %d\r\n\r\n" % len(body),
            body,
        )
        under_way = self.cycle is not None and self.cycle.response_started
        if not self.transport.is_closing():
            if not under_way:
                self.transport.write(b"".join(lines))
            self.transport.close()

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._too_slow, seconds)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self, seconds: float) -> None:
        self._deadline = None
        what = "headers" if self._in_head else "body"
        self._refuse(HttpRefused(f"the request's {what} did not come within {seconds:g} s", 408))


def _head_too_large() -> HttpRefused:
    return HttpRefused(
        f"the request's line and headers are longer than {bounds.MAX_HEAD_BYTES} bytes, "
        f"or more than {bounds.MAX_HEADERS}",
        431,
    )


def bounded_protocol(limits: bounds.Bounds, state: State) -> type[BoundedProtocol]:
    """The class of connections of a server with these bounds; `state` counts what is refused."""
    facts = {"max_connections": limits.connections, "max_body_bytes": limits.request_bytes}
    return type("LimitedProtocol", (BoundedProtocol,), {**facts, "state": state})

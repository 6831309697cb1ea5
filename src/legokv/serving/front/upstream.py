"""Triton's HTTP from inside: connections to a local socket, each for one request at a time."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

import httptools

MAX_BUFFERED_BYTES = 256 * 1024
"""Past so many bytes that nobody has taken, no more are read."""
_LOST = "the server ended the connection in the midst of an answer"


class Response:
    """One connection and the answer that comes over it; to be used by `Upstream.request`.

    httptools calls the `on_` methods. ConnectionError from any wait if the server is gone.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._complete = self._keeps = self._lost = self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None

    async def head(self) -> None:
        """Return when status and headers are there."""
        while not self.status:
            await self._more()

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while True:
            if self._parts:
                body = b"".join(self._parts)
                self._parts.clear()
                self._num_bytes = 0
                self._resume()
                yield body
            elif self._complete:
                return
            else:
                await self._more()

    async def read(self) -> bytes:
        """All of the body."""
        return b"".join([part async for part in self.parts()])

    def is_reusable(self) -> bool:
        """Whether the connection may take another request."""
        return self._keeps and not self._lost

    async def _more(self) -> None:
        if self._lost:
            raise ConnectionResetError(_LOST)
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def wake(self) -> None:
        """Something has come."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def feed(self, data: bytes) -> None:
        """Bytes of the answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.lose()
        self.wake()

    def lose(self) -> None:
        """Nothing more will come."""
        self._lost = True
        self.wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._num_bytes += len(body)
        if self._num_bytes > MAX_BUFFERED_BYTES and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        # It says no once the next message would begin.
        self._keeps = bool(self._parser.should_keep_alive())
        self._complete = True

    def _resume(self) -> None:
        if self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()


class _Connection(asyncio.Protocol):
    """A connection that hands what comes to the response under way; without one it closes."""

    def __init__(self) -> None:
        self.response: Response | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.response is not None:
            self.response.feed(data)
        elif self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.response is not None:
            self.response.lose()

    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()


class Request:
    """Sends one request; within the block its Response is there, its head read."""

    def __init__(self, upstream: "Upstream", message: tuple[bytes, bytes]) -> None:
        self._upstream = upstream
        self._message = message

    async def __aenter__(self) -> Response:
        self._connection = await self._upstream.connection()
        transport = self._connection.transport
        assert transport is not None, "it is connected"
        response = self._connection.response = Response()
        response.transport = transport
        head, body = self._message
        transport.write(head)
        if body:
            transport.write(body)
        try:
            await response.head()
        except BaseException:
            transport.abort()
            raise
        return response

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        response, self._connection.response = self._connection.response, None
        if response is not None and response.is_reusable():
            self._upstream.give_back(self._connection)
        elif self._connection.transport is not None:
            # The server sees that nobody waits for this answer any more.
            self._connection.transport.abort()


class Upstream:
    """Requests to one server, at a socket's path or a port. Made and used in one event loop."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self._address = address
        self._idle: list[_Connection] = []

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Request:
        """A block in which the response to a request is there; OSError if nobody answers."""
        lines = [f"{method} {path} HTTP/1.1", "Host: triton"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        return Request(self, ("\r\n".join([*lines, "", ""]).encode("latin-1"), body))

    async def connection(self) -> _Connection:
        """An open connection, for the caller alone."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open():
                return connection
        loop = asyncio.get_running_loop()
        if isinstance(self._address, str):
            _, connection = await loop.create_unix_connection(_Connection, self._address)
        else:
            _, connection = await loop.create_connection(_Connection, *self._address)
        return connection

    def give_back(self, connection: _Connection) -> None:
        """The connection may serve another request."""
        self._idle.append(connection)

    async def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            transport = self._idle.pop().transport
            if transport is not None:
                transport.close()

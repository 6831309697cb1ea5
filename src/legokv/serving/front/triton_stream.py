"""One stream to Triton, which may be left at any moment without harm to Triton.

Triton 24.10 dies of a cancellation that meets its stream's end: it frees the stream twice, as
CVE-2025-23322 says. So a stream that is left is ended by its client's side first, and cancelled
only if what was asked goes on for long.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc

PATIENCE_SECONDS = 0.2
"""How long what was asked on a stream that is left may go on before it is cancelled."""


class TritonStream:
    """A stream's requests and replies. Made, used and left in one event loop.

    A task of its own reads the replies: one that is cancelled while it reads cancels the stream.
    """

    _left: set["asyncio.Task[None]"] = set()  # noqa: RUF012 - asyncio holds tasks by weak references

    def __init__(self, call: Any) -> None:
        self._call = call
        # One waits at most: a client that does not read holds its own replies back.
        self._replies: asyncio.Queue[bytes | grpc.aio.AioRpcError | None] = asyncio.Queue(1)
        self._is_left = False
        self._reading = asyncio.create_task(self._read())

    async def write(self, body: bytes) -> None:
        """Send a request; AioRpcError or InvalidStateError for a stream that is over."""
        with _over_or_not():
            await self._call.write(body)

    async def done_writing(self) -> None:
        """Send no more; raises as `write` does."""
        with _over_or_not():
            await self._call.done_writing()

    async def code(self) -> grpc.StatusCode:
        return await self._call.code()

    async def details(self) -> str:
        return str(await self._call.details())

    def __aiter__(self) -> "TritonStream":
        return self

    async def __anext__(self) -> bytes:
        """The next reply; AioRpcError for a stream that ended with one."""
        reply = await self._replies.get()
        if reply is None:
            raise StopAsyncIteration
        if isinstance(reply, grpc.aio.AioRpcError):
            raise reply
        return reply

    def leave(self) -> None:
        """Take no more replies. The stream ends by itself, or is cancelled after a while."""
        self._is_left = True
        while not self._replies.empty():
            self._replies.get_nowait()
        if not self._reading.done():
            task = asyncio.create_task(self._end())
            self._left.add(task)
            task.add_done_callback(self._left.discard)

    async def _read(self) -> None:
        end: grpc.aio.AioRpcError | None = None
        try:
            async for reply in self._call:
                if not self._is_left:
                    await self._replies.put(bytes(reply))
        except grpc.aio.AioRpcError as error:
            end = error
        if not self._is_left:
            await self._replies.put(end)

    async def _end(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.done_writing()
        await asyncio.wait({self._reading}, timeout=PATIENCE_SECONDS)
        if not self._reading.done():
            self._call.cancel()


@contextmanager
def _over_or_not() -> Iterator[None]:
    """gRPC has an error of its own for what is sent while a stream comes to its end."""
    try:
        yield
    except grpc.aio.InternalError:
        raise asyncio.InvalidStateError("the stream is over") from None

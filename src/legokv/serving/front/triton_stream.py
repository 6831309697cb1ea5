"""One request on a stream of its own to Triton, which may be left at any moment without harm to it.

Triton 24.10 ends by itself of a cancellation that meets its stream's end, and of one of a stream
with several requests: it frees what it has freed, as CVE-2025-23322 says. So no stream is ever
cancelled, nor who writes to it or reads it: the model is told that the client is gone.
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from legokv.serving.ending import LEFT_PARAMETER, Leaving


class TritonStream:
    """A request and its replies. Made, used and left in one event loop.

    A task of its own writes and reads: one that is cancelled meanwhile cancels the stream.
    """

    _open: set["asyncio.Task[None]"] = set()  # noqa: RUF012 - asyncio holds tasks by weak references

    def __init__(self, call: Any, body: bytes, folder: Path) -> None:
        """body: a ModelInferRequest. folder: where the models look for who is gone."""
        self._call = call
        self._leaving = Leaving(folder)
        self._replies: asyncio.Queue[bytes | grpc.aio.AioRpcError | None] = asyncio.Queue()
        # One waits at most: a client that does not read holds its own replies back.
        self._room = asyncio.Semaphore(1)
        self._is_left = self._has_ended = False
        task = asyncio.create_task(self._ask(body + _named(self._leaving.name)))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    def __aiter__(self) -> "TritonStream":
        return self

    async def __anext__(self) -> bytes:
        """The next reply; AioRpcError for a stream that ended with one, or that was lost."""
        reply = await self._replies.get()
        self._room.release()
        if reply is None:
            raise StopAsyncIteration
        if isinstance(reply, grpc.aio.AioRpcError):
            raise reply
        return reply

    def leave(self) -> None:
        """Take no more replies, and have the request end soon."""
        self._is_left = True
        if not self._has_ended:
            self._leaving.leave()
        self._room.release()

    async def _ask(self, body: bytes) -> None:
        # As gRPC says it where the connection to a server breaks off.
        lost = ended_with(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        end: grpc.aio.AioRpcError | None = lost
        try:
            # Reading tells why a stream is over; of one being lost gRPC has errors of its own.
            with suppress(grpc.aio.InternalError, asyncio.InvalidStateError):
                await self._call.write(body)
                # An answer may take minutes, and a body has up to 17 MiB.
                del body
                await self._call.done_writing()
            async for reply in self._call:
                if not self._is_left:
                    await self._room.acquire()
                    self._replies.put_nowait(bytes(reply))
            end = None
        except grpc.aio.AioRpcError as error:
            end = error
        finally:
            # However it ends: of a channel that closes gRPC tells as of a task that is cancelled.
            self._has_ended = True
            self._leaving.forget()
            self._replies.put_nowait(end)


def ended_with(code: grpc.StatusCode, sentence: str) -> grpc.aio.AioRpcError:
    """What a call raises that a server ended so."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, sentence)


def _named(name: str) -> bytes:
    """What a request's bytes go on with, so that it has the parameter, whatever it had before."""
    request = service_pb2.ModelInferRequest()
    request.parameters[LEFT_PARAMETER].string_param = name
    return bytes(request.SerializeToString())

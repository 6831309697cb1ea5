"""A client's stream of requests: each is asked on a stream of its own, and written in turn."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2

from legokv.errors import Busy, LegokvError
from legokv.serving.front.internals import Internals
from legokv.serving.front.state import State
from legokv.serving.front.tensor_check import Model, check_request, parse_request
from legokv.serving.front.triton_stream import TritonStream

# The first byte of a ModelStreamInferResponse that has an error message.
_ERROR_TAG = b"\x0a"
# What a request's last reply has among its parameters.
_FINAL = b"triton_final_response\x12\x02\x08\x01"
STREAMED = "generate"
"""The model that Triton answers by streams alone."""
Write = Callable[[bytes], Awaitable[None]]
STREAM_REQUESTS = 64
"""So many of one stream's requests are under way at once; the next one waits."""
_LAST_WRITE_SECONDS = 2.0
"""A client that does not read holds the end of its stream back for so long."""


class ClientStreams:
    """The streams of all clients. `asked` hands a request to Triton; for one event loop."""

    def __init__(
        self,
        asked: Callable[[bytes], TritonStream],
        models: Mapping[str, Model],
        internals: Internals,
        state: State,
        idle_seconds: float,
    ) -> None:
        self._asked = asked
        self._models = models
        self._internals = internals
        self._state = state
        self._idle_seconds = idle_seconds

    async def answer(self, requests: AsyncIterator[bytes], to_client: Write) -> None:
        """All requests of one stream; a refused one ends no other of it.

        Busy for a stream that is idle too long, AioRpcError as Triton ended a request with it.
        """
        writing = asyncio.Lock()
        writes: set[asyncio.Task[None]] = set()

        async def write_in_turn(reply: bytes) -> None:
            async with writing:
                await to_client(reply)

        async def write(reply: bytes) -> None:
            # A task of its own: gRPC goes on with a write whose writer is cancelled.
            task = asyncio.create_task(write_in_turn(reply))
            writes.add(task)
            task.add_done_callback(seen)
            task.add_done_callback(writes.discard)
            await asyncio.shield(task)

        try:
            async with asyncio.timeout(self._idle_seconds) as idle:
                under_way = _UnderWay(self._state, idle, self._idle_seconds)
                try:
                    await self._ask_all(requests, write, under_way)
                finally:
                    # Those that were ended before they began.
                    under_way.change(-under_way.number)
                    # A refusal it writes now, and the end below, are not for one moment.
                    if writes:
                        await asyncio.wait(writes, timeout=_LAST_WRITE_SECONDS)
        except TimeoutError:
            raise _idle_error(self._idle_seconds) from None

    async def _ask_all(
        self, requests: AsyncIterator[bytes], write: Write, under_way: "_UnderWay"
    ) -> None:
        """Ask each request, on a stream of its own; AioRpcError if one of these ends with it."""
        places = asyncio.Semaphore(STREAM_REQUESTS)
        # A model answers in threads, so only an answer tells that a change has been made.
        in_turn = {name: asyncio.Semaphore(1) for name in self._models if name != STREAMED}

        async def answer(upstream: TritonStream, *held: asyncio.Semaphore) -> None:
            try:
                await self._pass_on(upstream, write)
            finally:
                under_way.change(-1)
                for bound in held:
                    bound.release()

        try:
            async with asyncio.TaskGroup() as answers:
                async for body in requests:
                    model, refusal = self._read(body)
                    if refusal is not None:
                        under_way.change(0)
                        await write(refusal)
                        continue
                    under_way.change(1)
                    held = [places, in_turn[model]] if model in in_turn else [places]
                    for bound in held:
                        await bound.acquire()
                    # From here on nobody holds the body but who writes it.
                    upstream = self._asked(body)
                    del body
                    task = answers.create_task(answer(upstream, *held))
                    task.add_done_callback(partial(_leave_if_cancelled, upstream))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _read(self, body: bytes) -> tuple[str, bytes | None]:
        """A request's model, and the reply to one of a stream that is not passed on."""
        request_id = ""
        try:
            request = parse_request(body)
            request_id = request.id
            self._state.check_taking()
            check_request(request, self._models)
        except LegokvError as error:
            self._state.note_refusal(error)
            return "", _stream_error(str(error), request_id)
        return request.model_name, None

    async def _pass_on(self, upstream: TritonStream, write: Write) -> None:
        """Write all replies to one request, each as clients get it."""
        over = False
        try:
            async for reply in upstream:
                # A model that has given its last reply need not be told of a client that leaves.
                over = over or reply.startswith(_ERROR_TAG) or is_last(reply)
                await write(self._checked(reply))
            over = True
        finally:
            if not over:
                upstream.leave()

    def _checked(self, reply: bytes) -> bytes:
        """A reply of a stream, its error as clients get it."""
        if not reply.startswith(_ERROR_TAG):
            return reply
        message = service_pb2.ModelStreamInferResponse.FromString(reply)
        message.error_message = self._internals.shown(message.error_message).sentence
        return bytes(message.SerializeToString())


def is_last(reply: bytes) -> bool:
    """Whether a stream's reply is its request's last. An id, which is in it, may spell it too."""
    if _FINAL not in reply:
        return False
    answer = service_pb2.ModelStreamInferResponse.FromString(reply).infer_response
    return bool(answer.parameters["triton_final_response"].bool_param)


class _UnderWay:
    """How many of one stream's requests are under way, counted in the state's."""

    def __init__(self, state: State, idle: asyncio.Timeout, idle_seconds: float) -> None:
        self._state = state
        self._idle = idle
        self._idle_seconds = idle_seconds
        self.number = 0

    def change(self, by: int) -> None:
        self.number += by
        self._state.num_open += by
        if not self._idle.expired():
            now = asyncio.get_running_loop().time()
            self._idle.reschedule(None if self.number else now + self._idle_seconds)


def _idle_error(seconds: float) -> Busy:
    return Busy(
        f"the stream had nothing under way and sent nothing for {seconds:g} s "
        "(--stream-idle-seconds): open another when there is a question"
    )


def _leave_if_cancelled(upstream: TritonStream, task: "asyncio.Task[Any]") -> None:
    """One that was cancelled before it began has not left its stream."""
    if task.cancelled():
        upstream.leave()


def seen(task: "asyncio.Task[Any]") -> None:
    """Whoever waits for it hears of its error; nobody need wait."""
    if not task.cancelled():
        task.exception()


def _stream_error(sentence: str, request_id: str) -> bytes:
    reply = service_pb2.ModelStreamInferResponse(error_message=sentence)
    reply.infer_response.id = request_id
    return bytes(reply.SerializeToString())

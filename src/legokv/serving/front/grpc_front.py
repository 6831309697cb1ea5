"""Triton's gRPC as clients get it: raw messages, checked, bounded and passed on."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from legokv.errors import Busy, Cancelled, InvalidRequest, LegokvError, NotFound
from legokv.serving.front import bounds
from legokv.serving.front.internals import STARTING, Internals
from legokv.serving.front.state import State
from legokv.serving.front.tensor_check import Model, check_model, check_request, parse_request
from legokv.serving.front.triton_stream import TritonStream, ended_with

SERVICE = "inference.GRPCInferenceService"
_CODES = {
    "INVALID_ARG": grpc.StatusCode.INVALID_ARGUMENT,
    "NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "CANCELLED": grpc.StatusCode.CANCELLED,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "UNSUPPORTED": grpc.StatusCode.UNIMPLEMENTED,
    "UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
}
_ERRORS: dict[grpc.StatusCode, type[LegokvError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAVAILABLE: Busy,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequest,
}
# The first byte of a ModelStreamInferResponse that has an error message.
_ERROR_TAG = b"\x0a"
# The two HealthCheckResponses of gRPC's own health protocol: field 1 is 1 or 2.
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
# What a request's last reply has among its parameters.
_FINAL = b"triton_final_response\x12\x02\x08\x01"
STREAMED = "generate"
"""The model that Triton answers by streams alone."""
_ERRORS_AS_STATUS = (("triton_grpc_error", "true"),)
_ONE_REPLY = "ModelInfer gives one reply: leave 'stream' out, or call ModelStreamInfer"
_OPEN = ("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelReady", "ServerLive")
_NAMED = {
    "ModelMetadata": service_pb2.ModelMetadataRequest,
    "ModelConfig": service_pb2.ModelConfigRequest,
    "ModelReady": service_pb2.ModelReadyRequest,
}
_CLOSED = (
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelStatistics"),
    *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    *("TraceSetting", "LogSettings"),
)
_CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),
)

Unary = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]
STREAM_REQUESTS = 64
"""So many of one stream's requests are under way at once; the next one waits."""
_LAST_WRITE_SECONDS = 2.0
"""A client that does not read holds the end of its stream back for so long."""


@dataclass(frozen=True)
class TritonBehind:
    """What a front passes requests on to. `folder`: where its models look for who is gone.

    `errors_have_codes`: whether models begin an error's sentence with its code.
    """

    target: str
    folder: Path
    errors_have_codes: bool = True


class GrpcFront(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """The service. Made and used in one event loop."""

    def __init__(
        self,
        triton: TritonBehind,
        models: dict[str, Model],
        internals: Internals,
        state: State,
        limits: bounds.Bounds,
    ) -> None:
        self._folder = triton.folder
        # Triton ends a stream whose errors are to be its status as if it were cancelled.
        self._metadata = () if triton.errors_have_codes else _ERRORS_AS_STATUS
        self._channel = grpc.aio.insecure_channel(triton.target, options=_CHANNEL)
        self._models = models
        self._internals = internals
        self._state = state
        self._idle_seconds = limits.stream_idle_seconds
        self._stream_upstream = self._channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        self._infer_upstream = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._handlers = {
            f"/{SERVICE}/ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream),
            f"/{SERVICE}/ModelInfer": _unary(self._call(self._infer)),
            f"/{SERVICE}/ServerReady": _unary(self._ready),
            "/grpc.health.v1.Health/Check": _unary(self._health),
            **{f"/{SERVICE}/{n}": _unary(self._passed(n, self._named(n))) for n in _OPEN},
            **{f"/{SERVICE}/{n}": _unary(_closed(n)) for n in _CLOSED},
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method; None, which gRPC tells as UNIMPLEMENTED, for others."""
        return self._handlers.get(handler_call_details.method)

    async def close(self) -> None:
        await self._channel.close()

    async def _ready(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        reply = service_pb2.ServerReadyResponse(ready=self._state.ready)
        return bytes(reply.SerializeToString())

    async def _health(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return _SERVING if self._state.ready else _NOT_SERVING

    def _passed(self, name: str, check: Callable[[bytes], None]) -> Unary:
        upstream = self._channel.unary_unary(f"/{SERVICE}/{name}")

        async def answer(body: bytes) -> bytes:
            check(body)
            with self._state.one_open():
                return bytes(await upstream(body))

        return self._call(answer)

    def _call(self, answer: Callable[[bytes], Awaitable[bytes]]) -> Unary:
        """The call that gives an answer, or ends as Triton or the front refused it."""

        async def call(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            try:
                answering = answer(body)
                del body
                return await answering
            except LegokvError as error:
                self._state.note_refusal(error)
                return await _abort(context, error)
            except grpc.aio.AioRpcError as error:
                return await self._abort_with(context, error)

        return call

    def _named(self, method: str) -> Callable[[bytes], None]:
        """A check that the model a message names is one of those that clients may name."""
        kind = _NAMED.get(method)

        def check(body: bytes) -> None:
            if kind is None:
                return
            try:
                asked = kind.FromString(body)
            except DecodeError as error:
                raise InvalidRequest(f"not a {kind.__name__}: {error}") from None
            check_model(asked.name, asked.version, self._models)

        return check

    async def _infer(self, body: bytes) -> bytes:
        """One request and its one reply; also of `generate`, which Triton answers by streams."""
        self._state.check_taking()
        request = parse_request(body)
        check_request(request, self._models)
        is_streamed = request.model_name == STREAMED
        del request
        with self._state.one_open():
            if is_streamed:
                answering = self._infer_of_stream(body)
                del body
                return await answering
            # Shielded, for Triton is not to be cancelled: what is asked of documents is soon over.
            asked = asyncio.ensure_future(self._infer_whole(body))
            asked.add_done_callback(_seen)
            return bytes(await asyncio.shield(asked))

    async def _infer_whole(self, body: bytes) -> bytes:
        return bytes(await self._infer_upstream(body))

    async def ask(self, request: Any) -> AsyncGenerator[Any, None]:
        """Replies to a ModelInferRequest of this process's own, under the bounds of clients'.

        Raises what it is refused with, by the classes of `legokv.errors`; the log has it by then.
        """
        try:
            self._state.check_taking()
            check_request(request, self._models)
        except LegokvError as error:
            self._state.note_refusal(error)
            raise
        over = False
        with self._state.one_open():
            call = self._asked(request.SerializeToString(), metadata=self._metadata)
            del request
            try:
                async for reply in call:
                    answer = service_pb2.ModelStreamInferResponse.FromString(reply)
                    if answer.error_message:
                        raise self._as_error(grpc.StatusCode.INTERNAL, answer.error_message)
                    # As below: nobody need be told.
                    over = _is_last(reply)
                    yield answer.infer_response
                over = True
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE and not _from_triton(error):
                    raise Busy(STARTING) from None
                raise self._as_error(error.code(), error.details() or "") from None
            finally:
                if not over:
                    call.leave()

    def _asked(self, body: bytes, **options: Any) -> TritonStream:
        return TritonStream(self._stream_upstream(**options), body, self._folder)

    def _as_error(self, code: grpc.StatusCode, sentence: str) -> LegokvError:
        """What Triton refused with, its sentence as clients get it."""
        client_error = self._internals.shown(sentence)
        kind = _ERRORS.get(_CODES.get(client_error.code, code), LegokvError)
        return kind(client_error.sentence)

    async def _infer_of_stream(self, body: bytes) -> bytes:
        """The one reply to a request that is streamed; InvalidRequest if there are more."""
        call = self._asked(body, metadata=self._metadata)
        del body
        answer = None
        over = False
        try:
            async for reply in call:
                answer = service_pb2.ModelStreamInferResponse.FromString(reply)
                if answer.error_message:
                    over = True
                    raise ended_with(grpc.StatusCode.INTERNAL, answer.error_message)
                if not _is_last(reply):
                    raise InvalidRequest(_ONE_REPLY)
            over = True
        finally:
            if not over:
                call.leave()
        if answer is None:
            raise Busy(STARTING)
        return bytes(answer.infer_response.SerializeToString())

    async def _stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> None:
        """One stream of requests and their replies; a refused request ends no other of it."""
        writing = asyncio.Lock()
        writes: set[asyncio.Task[None]] = set()

        async def write_in_turn(reply: bytes) -> None:
            async with writing:
                await context.write(reply)

        async def write(reply: bytes) -> None:
            # A task of its own: gRPC goes on with a write whose writer is cancelled.
            task = asyncio.create_task(write_in_turn(reply))
            writes.add(task)
            task.add_done_callback(_seen)
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
            self._state.note_refusal(error := _idle_error(self._idle_seconds))
            await _abort(context, error)
        except grpc.aio.AioRpcError as error:
            await self._abort_with(context, error)

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
                over = over or reply.startswith(_ERROR_TAG) or _is_last(reply)
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

    async def _abort_with(
        self, context: grpc.aio.ServicerContext, error: grpc.aio.AioRpcError
    ) -> bytes:
        """End the call as Triton ended it, its sentence as clients get it."""
        if error.code() is grpc.StatusCode.UNAVAILABLE and not _from_triton(error):
            await context.abort(grpc.StatusCode.UNAVAILABLE, STARTING)
        client_error = self._internals.shown(error.details() or "")
        await context.abort(_CODES.get(client_error.code, error.code()), client_error.sentence)
        raise AssertionError("abort raises")


def _is_last(reply: bytes) -> bool:
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


def _from_triton(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server said it, rather than gRPC of a server that is not there."""
    return not any(
        word in (error.details() or "") for word in ("failed to connect", "Socket closed", "unix:")
    )


def _idle_error(seconds: float) -> Busy:
    return Busy(
        f"the stream had nothing under way and sent nothing for {seconds:g} s "
        "(--stream-idle-seconds): open another when there is a question"
    )


def _unary(call: Unary) -> Any:
    """The handler of a call with one message, which must come within BODY_SECONDS.

    As a stream on this side, for gRPC itself waits for the message of a plain call for ever.
    """

    async def with_message(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> bytes:
        body = None
        with suppress(TimeoutError):
            async with asyncio.timeout(bounds.BODY_SECONDS):
                body = await anext(aiter(requests), None)
        if body is None:
            return await _abort(
                context, Busy(f"the call's message did not come within {bounds.BODY_SECONDS:g} s")
            )
        answering = call(body, context)
        del body
        return await answering

    return grpc.stream_unary_rpc_method_handler(with_message)


def _closed(name: str) -> Unary:
    async def refuse(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{name} is closed on this server")
        raise AssertionError("abort raises")

    return refuse


def _leave_if_cancelled(upstream: TritonStream, task: "asyncio.Task[Any]") -> None:
    """One that was cancelled before it began has not left its stream."""
    if task.cancelled():
        upstream.leave()


def _seen(task: "asyncio.Task[Any]") -> None:
    """Whoever waits for it hears of its error; nobody need wait."""
    if not task.cancelled():
        task.exception()


async def _abort(context: grpc.aio.ServicerContext, error: LegokvError) -> bytes:
    await context.abort(_CODES.get(error.code, grpc.StatusCode.INTERNAL), str(error))
    raise AssertionError("abort raises")


def _stream_error(sentence: str, request_id: str) -> bytes:
    reply = service_pb2.ModelStreamInferResponse(error_message=sentence)
    reply.infer_response.id = request_id
    return bytes(reply.SerializeToString())


def _is_news(record: logging.LogRecord) -> bool:
    """gRPC tells with a traceback of a call that its client or a bound ended before its handler."""
    return "ExecuteBatchError raised in core" not in record.getMessage()


async def listening(
    front: GrpcFront, host: str, port: int, limits: bounds.Bounds
) -> grpc.aio.Server:
    """A server on this port that answers by the front."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
    server = grpc.aio.server(
        options=(
            # Else a second server would share the port instead of being refused it.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", limits.connections),
            ("grpc.max_metadata_size", 32 * 1024),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ),
        maximum_concurrent_rpcs=limits.connections,
    )
    server.add_generic_rpc_handlers((front,))
    server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    await server.start()
    return server

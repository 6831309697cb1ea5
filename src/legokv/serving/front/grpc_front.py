"""Triton's gRPC as clients get it: raw messages, checked, bounded and passed on."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from legokv.errors import Busy, Cancelled, InvalidRequest, LegokvError, NotFound
from legokv.serving.front import bounds
from legokv.serving.front.grpc_stream import STREAMED, ClientStreams, is_last, seen
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
# The two HealthCheckResponses of gRPC's own health protocol: field 1 is 1 or 2.
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
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
        self._streams = ClientStreams(
            self._asked, models, internals, state, limits.stream_idle_seconds
        )
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
            asked.add_done_callback(seen)
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
                    over = is_last(reply)
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
                if not is_last(reply):
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
        """One stream of requests and their replies."""
        try:
            await self._streams.answer(requests, context.write)
        except Busy as error:
            self._state.note_refusal(error)
            await _abort(context, error)
        except grpc.aio.AioRpcError as error:
            await self._abort_with(context, error)

    async def _abort_with(
        self, context: grpc.aio.ServicerContext, error: grpc.aio.AioRpcError
    ) -> bytes:
        """End the call as Triton ended it, its sentence as clients get it."""
        if error.code() is grpc.StatusCode.UNAVAILABLE and not _from_triton(error):
            await context.abort(grpc.StatusCode.UNAVAILABLE, STARTING)
        client_error = self._internals.shown(error.details() or "")
        await context.abort(_CODES.get(client_error.code, error.code()), client_error.sentence)
        raise AssertionError("abort raises")


def _from_triton(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server said it, rather than gRPC of a server that is not there."""
    return not any(
        word in (error.details() or "") for word in ("failed to connect", "Socket closed", "unix:")
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


async def _abort(context: grpc.aio.ServicerContext, error: LegokvError) -> bytes:
    await context.abort(_CODES.get(error.code, grpc.StatusCode.INTERNAL), str(error))
    raise AssertionError("abort raises")


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

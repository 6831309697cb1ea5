"""Sends a request as its kind asks, and says what came of it."""

import http.client
import queue
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from fuzz.request import Grpc, Http, RawHttp, Request
from tritonclient.grpc import service_pb2, service_pb2_grpc

WAIT_SECONDS = 300


@dataclass(frozen=True)
class Outcome:
    """`status` is HTTP's number, gRPC's code by name, "left" of a client that went away, "closed"
    of a connection that ended without an answer, or "silent" where nothing came in time."""

    status: str
    body: bytes


@dataclass(frozen=True)
class Address:
    """host:port of both protocols."""

    http: str
    grpc: str


class Sender:
    """One client's way to a server; threads have one each."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._channel: grpc.Channel | None = None

    def send(self, request: Request) -> Outcome:
        if isinstance(request, Grpc):
            return self._grpc(request)
        return self._http(request) if isinstance(request, Http) else self._raw(request)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _http(self, request: Http) -> Outcome:
        connection = http.client.HTTPConnection(self._address.http, timeout=WAIT_SECONDS)
        size = request.chunk_bytes
        body: Any = request.body if size is None else iter(_pieces(request.body, size))
        try:
            connection.request(
                "POST", request.path, body, request.headers, encode_chunked=size is not None
            )
            answer = connection.getresponse()
            if request.leaves:
                return Outcome("left", answer.read(1))
            return Outcome(str(answer.status), answer.read())
        except TimeoutError:
            return Outcome("silent", b"")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Outcome("closed", str(error).encode())
        finally:
            connection.close()

    def _raw(self, request: RawHttp) -> Outcome:
        host, _, port = self._address.http.partition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=3) as connection:
                connection.sendall(request.content)
                connection.shutdown(socket.SHUT_WR)
                return Outcome("raw", connection.recv(65_536))
        except OSError as error:  # half a request may well be waited for
            return Outcome("left", str(error).encode())

    def _grpc(self, request: Grpc) -> Outcome:
        if self._channel is None:
            self._channel = grpc.insecure_channel(self._address.grpc)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            message = _message(request)
        except (ValueError, TypeError):
            return Outcome("unsent", b"")  # protobuf itself refuses it
        try:
            if not request.streams:
                return Outcome(
                    "OK", stub.ModelInfer(message, timeout=WAIT_SECONDS).SerializeToString()
                )
            return _stream(stub, [message] * request.times, leaves=request.leaves)
        except grpc.RpcError as error:
            status = error.code().name
            return Outcome(
                "silent" if status == "DEADLINE_EXCEEDED" else status, str(error.details()).encode()
            )


def _stream(stub: Any, requests: Sequence[Any], *, leaves: bool) -> Outcome:
    """Requests on a stream of their own, kept open until an answer has ended."""
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def messages() -> Any:
        yield from requests
        ended.get()

    call = stub.ModelStreamInfer(messages(), timeout=WAIT_SECONDS)
    status, replies = "OK", []
    try:
        for reply in call:
            replies.append(reply.infer_response.SerializeToString())
            if reply.error_message:
                status, replies = "refused", [*replies, reply.error_message.encode()]
                break
            final = reply.infer_response.parameters["triton_final_response"].bool_param
            if leaves or final:
                break
    finally:
        ended.put(None)
    if leaves:
        call.cancel()
    return Outcome("left" if leaves else status, b"\n".join(replies))


def _message(request: Grpc) -> Any:
    message = service_pb2.ModelInferRequest(
        model_name=request.model, model_version=request.version, id=request.request_id
    )
    for tensor in request.tensors:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(tensor.content)
    for name, value in request.parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(message.parameters[name], kind[type(value)], value)
    if request.streams:
        message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def _pieces(body: bytes, size: int) -> list[bytes]:
    return [body[first : first + size] for first in range(0, len(body), size)]

"""What reaches Triton through the front over gRPC, and what comes back of it."""

import asyncio
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from paths import ROOT
from tritonclient.grpc import service_pb2

from legokv.serving.ending import LEFT_PARAMETER, LEFT_VARIABLE, client_left
from legokv.serving.front import bounds, grpc_front, grpc_stream
from legokv.serving.front.bounds import Bounds
from legokv.serving.front.grpc_front import SERVICE, GrpcFront, TritonBehind, listening
from legokv.serving.front.internals import Internals
from legokv.serving.front.state import State
from legokv.serving.front.tensor_check import models_in

LEAK = "Failed to increase the shared memory pool size for key 'legokv_1_a'"
LIMIT = 100_000
LARGE = 50_000


@dataclass
class FakeTriton(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each request with one reply of the same id, or with `error`.

    It goes on to the next one when it may, or when the front has said that the client is gone.
    """

    folder: Path
    error: str = ""
    heard: list[bytes] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    num_ended: int = 0
    num_left: int = 0
    num_cancelled: int = 0
    num_replies: int = 1
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_go_on.set()

    def service(self, details: Any) -> Any:
        if details.method.endswith("ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(self.stream)
        return grpc.unary_unary_rpc_method_handler(self.unary)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.metadata += [key for key, _ in context.invocation_metadata()]
        try:
            async for body in requests:
                request = service_pb2.ModelInferRequest.FromString(body)
                gone = client_left(
                    request.parameters.pop(LEFT_PARAMETER).string_param,
                    {LEFT_VARIABLE: str(self.folder)},
                )
                self.heard.append(request.SerializeToString())
                reply = service_pb2.ModelStreamInferResponse(error_message=self.error)
                reply.infer_response.id = request.id
                for number in range(self.num_replies):
                    last = number == self.num_replies - 1
                    reply.infer_response.parameters["triton_final_response"].bool_param = last
                    yield reply.SerializeToString()
                    while not (self.may_go_on.is_set() or gone()):
                        await asyncio.sleep(0.01)
                    if gone():
                        self.num_left += 1
                        return
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_ended += 1

    async def unary(self, body: bytes, context: Any) -> bytes:
        self.heard.append(body)
        if self.error:
            await context.abort(grpc.StatusCode.INTERNAL, self.error)
        return body


@dataclass
class Running:
    channel: grpc.aio.Channel
    triton: FakeTriton
    state: State

    def call(self, name: str, body: bytes) -> Awaitable[bytes]:
        call: Awaitable[bytes] = self.channel.unary_unary(f"/{SERVICE}/{name}")(body)
        return call

    async def stream(self, *bodies: bytes) -> list[Any]:
        call = self.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        for body in bodies:
            await call.write(body)
        await call.done_writing()
        return [service_pb2.ModelStreamInferResponse.FromString(reply) async for reply in call]


def run(
    folder: Path, trial: Callable[[Running], Awaitable[None]], idle_seconds: float = 300
) -> None:
    """The trial, with a front between it and a server that remembers."""

    async def main() -> None:
        triton, state = FakeTriton(folder), State(answering=True)
        behind = grpc.aio.server()
        behind.add_generic_rpc_handlers((triton,))
        behind.add_insecure_port(f"unix:{folder}/grpc")
        await behind.start()
        models = models_in(ROOT / "model_repo")
        limits = Bounds(LIMIT, 8, idle_seconds)
        front = GrpcFront(
            TritonBehind(f"unix:{folder}/grpc", folder), models, Internals(()), state, limits
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = await listening(front, "127.0.0.1", port, limits)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await trial(Running(channel, triton, state))
        await server.stop(None)
        await front.close()
        await behind.stop(None)

    asyncio.run(main())


def question(request_id: str = "a", shape: tuple[int, ...] = (1, 1)) -> bytes:
    made = service_pb2.ModelInferRequest(model_name="generate", id=request_id)
    made.inputs.add(name="text_input", datatype="BYTES", shape=shape)
    made.raw_input_contents.append(b"\4\0\0\0Who?")
    return bytes(made.SerializeToString())


def test_a_refused_request_ends_no_other_of_its_stream(tmp_path: Path) -> None:
    async def trial(front: Running) -> None:
        bodies = question("a"), question("b", shape=(2, 1)), b"\xff\xff", question("c")
        replies = await front.stream(*bodies)
        errors = {reply.infer_response.id: reply.error_message for reply in replies}
        assert set(errors) == {"a", "b", "", "c"}
        assert errors["a"] == errors["c"] == ""
        assert errors["b"] == "text_input has shape [2, 1], [1, 1] is taken (-1: any)"
        assert errors[""].startswith("not a ModelInferRequest")
        assert sorted(front.triton.heard) == [question("a"), question("c")]

    run(tmp_path, trial)


def test_errors_that_name_what_is_inside_are_replaced(tmp_path: Path) -> None:
    async def trial(front: Running) -> None:
        front.triton.error = LEAK
        (reply,) = await front.stream(question())
        assert reply.error_message == "an internal error; the server's log has it"
        assert reply.infer_response.id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await front.call("ModelInfer", question())
        assert raised.value.details() == "an internal error; the server's log has it"
        front.triton.error = "max_tokens is 0"
        assert (await front.stream(question()))[0].error_message == "max_tokens is 0"
        front.triton.error = "legokv error NOT_FOUND no document '/dev/shm'"
        assert (await front.stream(question()))[0].error_message == "no document '/dev/shm'"
        documents = service_pb2.ModelInferRequest(model_name="documents")
        documents.inputs.add(name="request", datatype="BYTES", shape=(1,))
        documents.raw_input_contents.append(b"\2\0\0\0{}")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await front.call("ModelInfer", documents.SerializeToString())
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert raised.value.details() == "no document '/dev/shm'"

    run(tmp_path, trial)


def test_what_clients_need_passes_and_what_harms_does_not(tmp_path: Path) -> None:
    async def trial(front: Running) -> None:
        named = service_pb2.ModelConfigRequest(name="generate").SerializeToString()
        assert await front.call("ModelConfig", named) == named
        other = service_pb2.ModelConfigRequest(name="engine").SerializeToString()
        for name, body, code in (
            ("ModelConfig", other, "NOT_FOUND"),
            ("ModelConfig", b"\xff", "INVALID_ARGUMENT"),
            ("SystemSharedMemoryRegister", b"", "PERMISSION_DENIED"),
            ("LogSettings", b"", "PERMISSION_DENIED"),
            ("ModelStatistics", b"", "PERMISSION_DENIED"),
            ("Unheard", b"", "UNIMPLEMENTED"),
            ("ModelInfer", b" " * (LIMIT + 1), "RESOURCE_EXHAUSTED"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await front.call(name, body)
            assert raised.value.code().name == code
        assert front.triton.heard == [named]

    run(tmp_path, trial)


@pytest.mark.parametrize("packing", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_past_the_bound_ends_its_stream_and_leaves_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, packing: grpc.Compression
) -> None:
    async def trial(front: Running) -> None:
        for _ in range(5):
            call = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(compression=packing)
            await call.write(b" " * 10 * LIMIT)
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (front.state.num_open, front.triton.heard) == (0, [])
        # As gRPC says it where the stream's end meets that of its handler, which is seldom.
        log = logging.getLogger("grpc._cython.cygrpc")
        log.error("ExecuteBatchError raised in core by servicer method [%s]", SERVICE)
        log.error("Another error")

    run(tmp_path, trial)
    assert caplog.messages == ["Another error"]


def test_readiness_and_refusals_are_the_front_s(tmp_path: Path) -> None:
    async def trial(front: Running) -> None:
        for ready in (True, False):
            front.state.answering = ready
            reply = service_pb2.ServerReadyResponse.FromString(await front.call("ServerReady", b""))
            assert reply.ready is ready
        front.state.refusal = "the server is stopping"
        (reply,) = await front.stream(question())
        assert reply.error_message == "the server is stopping"
        assert front.triton.heard == []

    run(tmp_path, trial)


def test_a_server_that_is_gone_is_told_as_something_to_try_later(tmp_path: Path) -> None:
    async def main() -> None:
        limits = Bounds(LIMIT, connections=8)
        front = GrpcFront(
            TritonBehind(f"unix:{tmp_path}/none", tmp_path), {}, Internals(()), State(), limits
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = await listening(front, "127.0.0.1", port, limits)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="ask again in a few seconds") as raised:
                await channel.unary_unary(f"/{SERVICE}/ServerLive")(b"")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        await server.stop(None)
        await front.close()

    asyncio.run(main())


def test_one_reply_of_a_model_that_streams_is_got_by_the_plain_call(tmp_path: Path) -> None:
    async def trial(front: Running) -> None:
        body = await front.call("ModelInfer", question("mine"))
        assert service_pb2.ModelInferResponse.FromString(body).id == "mine"
        front.triton.num_replies = 2
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await front.call("ModelInfer", question())
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.details().startswith("ModelInfer gives one reply: leave 'stream' out")
        assert front.state.num_open == 0

    run(tmp_path, trial)


def test_an_error_of_a_stream_has_its_model_s_code_and_triton_is_not_asked_for_a_status(
    tmp_path: Path,
) -> None:
    async def trial(front: Running) -> None:
        front.triton.error = "legokv error NOT_FOUND no document 'a'"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await front.call("ModelInfer", question())
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert refused.value.details() == "no document 'a'"
        assert "user-agent" in front.triton.metadata
        assert "triton_grpc_error" not in front.triton.metadata

    run(tmp_path, trial)


def test_an_id_that_spells_a_last_reply_is_none(tmp_path: Path) -> None:
    """The id is in each reply: a search for the mark would find it there."""
    spelt = "triton_final_response\x12\x02\x08\x01"

    async def trial(front: Running) -> None:
        front.triton.num_replies = 3
        with pytest.raises(grpc.aio.AioRpcError, match="ModelInfer gives one reply"):
            await front.call("ModelInfer", question(spelt))
        front.triton.may_go_on.clear()
        call = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        await call.write(question(spelt))
        await call.read()
        assert front.state.num_open == 1
        call.cancel()

    run(tmp_path, trial)


async def until_none_is_open(front: Running) -> None:
    """A client may have its reply before the front has counted it."""
    async with asyncio.timeout(60):
        while front.state.num_open:
            await asyncio.sleep(0.01)


def test_requests_are_counted_while_they_are_under_way(tmp_path: Path) -> None:
    """Each of a stream from its arrival to its last reply, also where the client leaves before."""

    async def trial(front: Running) -> None:
        front.triton.num_replies = 2
        front.triton.may_go_on.clear()
        call = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        await call.write(question("a"))
        await call.read()
        assert front.state.num_open == 1
        front.triton.may_go_on.set()
        await call.read()
        await until_none_is_open(front)
        front.triton.may_go_on.clear()
        await call.write(question("b"))
        await call.read()
        assert front.state.num_open == 1
        call.cancel()
        await until_none_is_open(front)

    run(tmp_path, trial)


def test_a_stream_that_sends_nothing_ends(tmp_path: Path) -> None:
    async def trial(front: Running) -> None:
        call = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "sent nothing for 1 s (--stream-idle-seconds)" in await call.details()
        assert front.state.num_refused["UNAVAILABLE"] == 1

    run(tmp_path, trial, idle_seconds=1.0)


def test_a_stream_that_waits_for_its_answer_does_not_end_before_it(tmp_path: Path) -> None:
    """However long that takes: the time of idleness begins anew with the last reply."""
    idle_seconds = 3.0

    async def trial(front: Running) -> None:
        front.triton.may_go_on.clear()
        front.triton.num_replies = 2
        call = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        await call.write(question())
        await call.read()
        await asyncio.sleep(1.2 * idle_seconds)
        front.triton.may_go_on.set()
        last = service_pb2.ModelStreamInferResponse.FromString(await call.read())
        assert last.infer_response.parameters["triton_final_response"].bool_param
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert (front.state.num_open, front.triton.num_ended) == (0, 1)

    run(tmp_path, trial, idle_seconds)


def test_a_plain_call_whose_message_does_not_come_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BODY_SECONDS", 0.3)

    async def trial(front: Running) -> None:
        for name in ("ModelInfer", "ModelConfig", "ServerReady", "LogSettings"):
            call = front.channel.stream_unary(f"/{SERVICE}/{name}")()
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert "message did not come within 0.3 s" in await call.details()

    run(tmp_path, trial)


@pytest.mark.parametrize("name", ["ModelStreamInfer", "ModelInfer"])
def test_a_model_is_told_whose_client_left_and_triton_is_never_cancelled(
    tmp_path: Path, name: str
) -> None:
    async def trial(front: Running) -> None:
        front.triton.num_replies = 2
        front.triton.may_go_on.clear()
        if name == "ModelInfer":
            asking = asyncio.ensure_future(front.call(name, question()))
            async with asyncio.timeout(60):
                while not front.triton.heard:
                    await asyncio.sleep(0.01)
            asking.cancel()
        else:
            call = front.channel.stream_stream(f"/{SERVICE}/{name}")()
            await call.write(question())
            await call.read()
            call.cancel()
        await until_none_is_open(front)
        await until_ended(front, 1)
        assert (front.triton.num_left, front.triton.num_cancelled) == (1, 0)
        # Nothing is left of it but the socket.
        async with asyncio.timeout(60):
            while [file.name for file in tmp_path.iterdir()] != ["grpc"]:
                await asyncio.sleep(0.01)

    run(tmp_path, trial)


def test_each_request_of_a_stream_is_on_one_of_its_own_at_triton(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or Triton ends by itself when the client of a few leaves."""
    monkeypatch.setattr(grpc_stream, "STREAM_REQUESTS", 3)

    async def trial(front: Running) -> None:
        front.triton.num_replies = 2
        front.triton.may_go_on.clear()
        call = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        for name in "abcde":
            await call.write(question(name))
        for _ in range(3):
            await call.read()
        # Those past the bound wait for one of these to end.
        assert sorted(front.triton.heard) == [question(name) for name in "abc"]
        call.cancel()
        await until_none_is_open(front)
        await until_ended(front, 3)
        assert (front.triton.num_left, front.triton.num_cancelled) == (3, 0)

    run(tmp_path, trial)


async def until_ended(front: Running, number: int) -> None:
    async with asyncio.timeout(60):
        while front.triton.num_ended < number:
            await asyncio.sleep(0.01)


def change(request_id: str) -> bytes:
    made = service_pb2.ModelInferRequest(model_name="documents", id=request_id)
    made.inputs.add(name="request", datatype="BYTES", shape=(1,))
    made.raw_input_contents.append(b"\2\0\0\0{}")
    return bytes(made.SerializeToString())


def test_changes_of_documents_on_one_stream_are_made_in_its_order(tmp_path: Path) -> None:
    """Each is asked when the one before it has been answered; questions wait for none."""

    async def trial(front: Running) -> None:
        front.triton.num_replies = 2
        front.triton.may_go_on.clear()
        call = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        for body in (question("a"), question("b"), change("c"), change("d")):
            await call.write(body)
        await call.done_writing()
        for _ in "abc":
            await call.read()
        assert sorted(front.triton.heard) == sorted([question("a"), question("b"), change("c")])
        front.triton.may_go_on.set()
        rest = [
            service_pb2.ModelStreamInferResponse.FromString(await call.read()) for _ in range(5)
        ]
        ids = [reply.infer_response.id for reply in rest]
        assert [name for name in ids if name in "cd"] == ["c", "d", "d"]
        assert front.triton.heard[-1] == change("d")
        await until_none_is_open(front)

    run(tmp_path, trial)


@dataclass
class Silent:
    """A stream to Triton that gives one reply, keeps nothing, and ends when it is left."""

    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"\x12\0"
        await self.left.wait()

    def leave(self) -> None:
        self.left.set()


def test_bodies_are_not_held_while_their_answers_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_front, "TritonStream", lambda *_: Silent())

    async def trial(front: Running) -> None:
        call = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        for _ in range(8):
            await call.write(question("a" * LARGE))
            await call.read()
        held = [trace for trace in tracemalloc.take_snapshot().traces if trace.size >= LARGE]
        # Either side of gRPC may have the last one still.
        assert (front.state.num_open, len(held) <= 2) == (8, True)
        call.cancel()
        await until_none_is_open(front)

    tracemalloc.start()
    try:
        run(tmp_path, trial)
    finally:
        tracemalloc.stop()

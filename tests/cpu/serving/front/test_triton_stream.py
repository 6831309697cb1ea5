"""A stream to Triton that is left ends when the model knows of it, and is never cancelled."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from legokv.serving.ending import LEFT_PARAMETER, LEFT_VARIABLE, client_left
from legokv.serving.front.triton_stream import TritonStream

BODY = service_pb2.ModelInferRequest(id="a").SerializeToString()


class Call:
    """A call to Triton: so many replies, then its end once the model knows of the client's."""

    def __init__(self, folder: Path, *replies: bytes) -> None:
        self.said: list[str] = []
        self.is_gone: Callable[[], bool] = lambda: False
        self._folder = folder
        self._replies = replies

    async def write(self, body: bytes) -> None:
        assert body.startswith(BODY)
        request = service_pb2.ModelInferRequest.FromString(body)
        name = request.parameters[LEFT_PARAMETER].string_param
        self.is_gone = client_left(name, {LEFT_VARIABLE: str(self._folder)})

    async def done_writing(self) -> None:
        self.said.append("done writing")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for reply in self._replies:
                yield reply
            while not self.is_gone():
                await asyncio.sleep(0.005)
            self.said.append("told")
        except asyncio.CancelledError:  # as gRPC's does
            self.cancel()
            raise

    def cancel(self) -> None:
        self.said.append("cancelled")


def run(trial: Callable[[], Awaitable[list[str]]]) -> list[str]:
    async def main() -> list[str]:
        async with asyncio.timeout(60):
            return await trial()

    return asyncio.run(main())


async def until_forgotten(folder: Path, call: Call) -> list[str]:
    """What the call was told by the time that nothing is known of it any more."""
    while "told" not in call.said or list(folder.iterdir()):
        await asyncio.sleep(0.005)
    return call.said


def test_a_stream_whose_reader_is_cancelled_ends_and_is_not(tmp_path: Path) -> None:
    async def trial() -> list[str]:
        call = Call(tmp_path, b"a")
        stream = TritonStream(call, BODY, tmp_path)
        assert await anext(stream) == b"a"
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait({reading})
        assert call.said == ["done writing"]
        stream.leave()
        return await until_forgotten(tmp_path, call)

    assert run(trial) == ["done writing", "told"]


def test_replies_that_nobody_takes_any_more_hold_nothing_back(tmp_path: Path) -> None:
    async def trial() -> list[str]:
        call = Call(tmp_path, *[b"a"] * 50)
        stream = TritonStream(call, BODY, tmp_path)
        await anext(stream)
        await asyncio.sleep(0.01)
        stream.leave()
        return await until_forgotten(tmp_path, call)

    assert run(trial) == ["done writing", "told"]


def test_a_stream_that_is_left_when_it_has_ended_leaves_nothing(tmp_path: Path) -> None:
    class Ending(Call):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"a"
            self.said.append("told")

    async def trial() -> list[str]:
        call = Ending(tmp_path)
        stream = TritonStream(call, BODY, tmp_path)
        assert [reply async for reply in stream] == [b"a"]
        stream.leave()
        return await until_forgotten(tmp_path, call)

    assert run(trial) == ["done writing", "told"]


def test_an_end_with_an_error_is_raised_to_who_reads(tmp_path: Path) -> None:
    class Failing(Call):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"a"
            metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata, "gone")

    async def trial() -> list[str]:
        stream = TritonStream(Failing(tmp_path), BODY, tmp_path)
        assert await anext(stream) == b"a"
        with pytest.raises(grpc.aio.AioRpcError, match="gone"):
            await anext(stream)
        return []

    assert run(trial) == []


def test_a_stream_that_takes_no_end_any_more_leaves_no_fault(tmp_path: Path) -> None:
    """As gRPC has it where Triton is lost in the midst of a stream."""

    class LostCall(Call):
        async def done_writing(self) -> None:
            raise grpc.aio.InternalError("Failed execute_batch")

    faults: list[object] = []

    async def trial() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        call = LostCall(tmp_path, b"a")
        stream = TritonStream(call, BODY, tmp_path)
        assert await anext(stream) == b"a"
        stream.leave()
        return await until_forgotten(tmp_path, call)

    assert run(trial) == ["told"]
    gc.collect()
    assert faults == []


def test_a_stream_that_is_lost_in_any_way_is_told_as_one_that_triton_broke_off(
    tmp_path: Path,
) -> None:
    """As of a channel that closes: gRPC then cancels who reads."""

    async def trial(lost: BaseException, num_replies: int) -> None:
        class Closing(Call):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                for _ in range(num_replies):
                    yield b"a"
                raise lost

        stream = TritonStream(Closing(tmp_path), BODY, tmp_path)
        for _ in range(num_replies):
            assert await anext(stream) == b"a"
        with pytest.raises(grpc.aio.AioRpcError, match="Socket closed") as raised:
            await anext(stream)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        stream.leave()
        assert list(tmp_path.iterdir()) == []

    async def trials() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        for lost in (asyncio.CancelledError(), asyncio.InvalidStateError(), RuntimeError("a")):
            for num_replies in (0, 2):
                await trial(lost, num_replies)
        return []

    assert run(trials) == []


def test_a_body_is_held_until_it_is_written_and_no_longer(tmp_path: Path) -> None:
    size = 8 * 2**20

    class Measuring(Call):
        async def write(self, body: bytes) -> None:
            sizes.append(_held())

        async def __aiter__(self) -> AsyncIterator[bytes]:
            sizes.append(_held())
            yield b"a"

    sizes: list[int] = []

    async def trial() -> list[str]:
        large = service_pb2.ModelInferRequest(id="a" * size).SerializeToString()
        stream = TritonStream(Measuring(tmp_path), large, tmp_path)
        del large
        assert [reply async for reply in stream] == [b"a"]
        return []

    tracemalloc.start()
    try:
        run(trial)
    finally:
        tracemalloc.stop()
    while_written, afterwards = sizes
    assert while_written > size > 8 * afterwards


def _held() -> int:
    return tracemalloc.get_traced_memory()[0]

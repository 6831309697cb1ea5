"""A stream to Triton that is left is ended by its own side; only what goes on is cancelled."""

import asyncio
import gc
from collections.abc import AsyncIterator

import grpc
import pytest

from legokv.serving.front import triton_stream
from legokv.serving.front.triton_stream import TritonStream


class Call:
    """A call to Triton: replies, then its end once the client has done writing, if it `ends`."""

    def __init__(self, *replies: bytes, ends: bool = True) -> None:
        self.said: list[str] = []
        self._replies = replies
        self._ends = ends
        self._over = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for reply in self._replies:
                yield reply
            await self._over.wait()
        except asyncio.CancelledError:  # as gRPC's does
            self.cancel()
            raise

    async def done_writing(self) -> None:
        self.said.append("done writing")
        if self._ends:
            self._over.set()

    def cancel(self) -> None:
        self.said.append("cancelled")
        self._over.set()


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_stream, "PATIENCE_SECONDS", 0.1)


async def left(call: Call) -> list[str]:
    """What the call was told when its stream was left by a reader who waits for more of it."""
    stream = TritonStream(call)
    assert await anext(stream) == b"a"

    async def read_on() -> None:
        async for _ in stream:
            pass

    reading = asyncio.create_task(read_on())
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait({reading})
    assert call.said == []
    stream.leave()
    await asyncio.sleep(0.3)
    return call.said


def test_a_stream_that_ends_by_itself_is_never_cancelled() -> None:
    async def trial() -> list[str]:
        return await left(Call(b"a"))

    assert asyncio.run(trial()) == ["done writing"]


def test_replies_that_nobody_takes_any_more_hold_nothing_back() -> None:
    async def trial() -> list[str]:
        call = Call(*[b"a"] * 50)
        stream = TritonStream(call)
        await anext(stream)
        await asyncio.sleep(0.01)
        stream.leave()
        await asyncio.sleep(0.3)
        return call.said

    assert asyncio.run(trial()) == ["done writing"]


def test_what_goes_on_is_cancelled_after_a_while() -> None:
    async def trial() -> list[str]:
        return await left(Call(b"a", ends=False))

    assert asyncio.run(trial()) == ["done writing", "cancelled"]


def test_an_end_with_an_error_is_raised_to_who_reads() -> None:
    class Failing(Call):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"a"
            metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata, "gone")

    async def trial() -> None:
        stream = TritonStream(Failing())
        assert await anext(stream) == b"a"
        with pytest.raises(grpc.aio.AioRpcError, match="gone"):
            await anext(stream)

    asyncio.run(trial())


def test_a_stream_that_takes_no_end_any_more_is_cancelled_and_leaves_no_fault() -> None:
    """As gRPC has it where Triton is lost in the midst of a stream."""

    class LostCall(Call):
        async def done_writing(self) -> None:
            raise grpc.aio.InternalError("Failed execute_batch")

    faults: list[object] = []

    async def trial() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        call = LostCall(b"a", ends=False)
        said = await left(call)
        with pytest.raises(asyncio.InvalidStateError, match="the stream is over"):
            await TritonStream(call).done_writing()
        return said

    assert asyncio.run(trial()) == ["cancelled"]
    gc.collect()
    assert faults == []

"""The engine's process without Triton: commands from many threads, one thread that computes."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from legokv import Engine
from legokv.engine.sampling import SamplingOptions
from legokv.errors import InvalidRequest, LegokvError, NotFound
from legokv.kernels.gpu import LaunchRefused
from legokv.serving import engine_service
from legokv.serving.engine_service import COMPUTE_NICENESS, EngineService
from legokv.serving.messages import (
    Answered,
    Cancel,
    Compile,
    Compiled,
    Done,
    Drop,
    Event,
    Generate,
    Next,
    Piece,
    PromptSegment,
)
from legokv.step.batch import StepBatch

POOL_TOKENS = 1024
FRESH = PromptSegment((40, 41, 42), cached=False)
CHUNKS = tuple(PromptSegment(tuple(range(10 * n, 10 * n + 40))) for n in range(5))


@pytest.fixture
def engine(tiny_engine_folder: Callable[[], Path], tmp_path: Path) -> Engine:
    return Engine.open(tiny_engine_folder(), pool_tokens=POOL_TOKENS, cache_dir=tmp_path)


@pytest.fixture
def service(engine: Engine) -> Iterator[EngineService]:
    made = EngineService(engine)
    yield made
    made.close()


def command(
    request_id: str, *segments: PromptSegment, max_tokens: int = 12, link_tokens: int = 16
) -> Generate:
    return Generate(
        request_id,
        "default",
        (*segments, FRESH),
        max_tokens,
        "legolink",
        link_tokens,
        SamplingOptions(),
    )


def answer(service: EngineService, asked: Generate) -> tuple[list[int], Answered]:
    """All tokens and the end of one answer."""
    events: list[Event] = service.events(asked)
    while not (events and isinstance(events[-1], Answered)):
        events += service.events(Next(asked.request_id))
    last = events.pop()
    assert isinstance(last, Answered)
    return [e.token_id for e in events if isinstance(e, Piece)], last


def free_pages(engine: Engine, expected: int) -> int:
    """Free pages once they are `expected`, or after five seconds."""
    deadline = time.monotonic() + 5
    while engine.cache.pool.num_free != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return engine.cache.pool.num_free


def test_many_requests_at_once_answer_as_the_library_does_alone(
    engine: Engine, service: EngineService, tiny_engine_folder: Callable[[], Path]
) -> None:
    asked = [command(f"r{n}", *CHUNKS[n % 5 :], *CHUNKS[: n % 5]) for n in range(10)]
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda one: answer(service, one)[0], asked))
    alone = Engine.open(tiny_engine_folder(), pool_tokens=POOL_TOKENS)
    for one, ids in zip(asked, answers, strict=True):
        segments = [alone.compile(piece.token_ids) for piece in one.segments[:-1]]
        tokens = alone.generate([*segments, FRESH.token_ids], max_tokens=12)
        assert ids == [token.id for token in tokens]


def test_the_last_event_says_what_the_answer_took(service: EngineService) -> None:
    ids, last = answer(service, command("r", *CHUNKS[:2]))
    assert last.finish_reason == "length"
    assert last.usage.generated_tokens == len(ids) == 12
    assert (last.usage.prompt_tokens, last.usage.recomputed_tokens) == (83, 16)


def test_an_answer_that_is_over_is_not_known_any_more(service: EngineService) -> None:
    answer(service, command("r"))
    with pytest.raises(NotFound, match="no request 'r' is under way"):
        service.events(Next("r"))


def test_a_cancelled_answer_gives_its_pages_back_and_its_neighbour_goes_on(
    engine: Engine, service: EngineService
) -> None:
    before = engine.cache.pool.num_free
    service.events(command("long", max_tokens=700))
    neighbour = command("short", CHUNKS[0])
    events = service.events(neighbour)
    assert service.events(Cancel("long")) == [Done()]
    while not isinstance(events[-1], Answered):
        events += service.events(Next("short"))
    with pytest.raises(NotFound):
        service.events(Next("long"))
    # What is left is the neighbour's chunk of 40 tokens, in 3 pages.
    assert free_pages(engine, before - 3) == before - 3
    assert answer(service, command("again", CHUNKS[0]))[0] == [
        e.token_id for e in events if isinstance(e, Piece)
    ]


def test_cancelling_what_is_not_there_does_nothing(service: EngineService) -> None:
    assert service.events(Cancel("nobody")) == [Done()]


def test_an_answer_nobody_asks_for_any_more_is_cancelled(
    engine: Engine, service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine.cache.pool.num_free
    monkeypatch.setattr(engine_service, "ABANDONED_SECONDS", 0.2)
    service.events(command("left", max_tokens=900))
    assert free_pages(engine, before) == before
    with pytest.raises(NotFound):
        service.events(Next("left"))


def test_a_compiled_chunk_is_found_by_requests_and_a_dropped_one_is_not(
    service: EngineService, tmp_path: Path
) -> None:
    (compiled,) = service.events(Compile("default", CHUNKS[0].token_ids))
    assert isinstance(compiled, Compiled)
    assert list(tmp_path.rglob(f"{compiled.key}.safetensors"))
    assert answer(service, command("a", CHUNKS[0]))[1].usage.compiled_tokens == 0
    assert service.events(Drop((compiled.key,))) == [Done()]
    assert not list(tmp_path.rglob(f"{compiled.key}.safetensors"))
    assert answer(service, command("b", CHUNKS[0]))[1].usage.compiled_tokens == 40


def test_a_chunk_that_is_not_persistent_leaves_no_file(
    service: EngineService, tmp_path: Path
) -> None:
    passing = PromptSegment(tuple(range(30)), persistent=False)
    answer(service, command("a", passing))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (command("r", max_tokens=9999), "max_tokens 9999 exceed the model's context of 2048"),
        (command("r", max_tokens=1500), r"needs \d+ pages of 16 tokens, the pool has 64"),
        (command("r", PromptSegment((1, -7))), "token ids lie between 0 and"),
        (command("r", link_tokens=-1), "link_tokens is 0 or more, not -1"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_the_next_is_answered(
    service: EngineService, asked: Generate, message: str
) -> None:
    with pytest.raises(LegokvError, match=message):
        service.events(asked)
    assert len(answer(service, command("next"))[0]) == 12


FAULTS = (
    LaunchRefused("no kernel for head size 7"),
    torch.OutOfMemoryError("no memory for 3 GiB"),
    MemoryError("none left"),
    IndexError("list index out of range"),
    OSError("no space left"),
)


@pytest.fixture
def failing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Errors that the runner's next steps of more than one token raise, the last first."""
    faults: list[Exception] = []
    run = engine.runner.run

    def running(batch: StepBatch) -> Tensor:
        if faults and len(batch.input_ids) > 1:
            raise faults.pop()
        return run(batch)

    monkeypatch.setattr(engine.runner, "run", running)
    return faults


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_step_of_the_model_that_fails_ends_its_requests_and_the_next_is_answered(
    engine: Engine, service: EngineService, failing: list[Exception], fault: Exception, times: int
) -> None:
    unlucky = [command("compiling", CHUNKS[0]), command("linking"), Compile("default", (5, 6, 7))]
    idle = engine.cache.pool.num_free - 6  # two chunks of 40 tokens stay, each in 3 pages
    expected = answer(service, command("expected", CHUNKS[1], CHUNKS[2]))[0]
    for number in range(times * len(unlucky)):
        failing.append(fault)
        asked = unlucky[number % len(unlucky)]
        with pytest.raises(LegokvError, match=f"{type(fault).__name__}: {fault}"):
            service.events(asked) if isinstance(asked, Compile) else answer(service, asked)
        assert not failing
        assert free_pages(engine, idle) == idle
    assert answer(service, command("lucky", CHUNKS[1], CHUNKS[2]))[0] == expected
    assert len(answer(service, command("linking"))[0]) == 12
    assert isinstance(service.events(Compile("default", (5, 6, 7)))[0], Compiled)


def test_what_nobody_foresaw_in_a_step_ends_all_requests_and_the_next_is_answered(
    engine: Engine, service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last boundary: errors of the runner and of the tiers do not come this far.
    steps = engine.executor.step
    faults = [IndexError("list index out of range")]

    def step() -> bool:
        if faults and engine.executor.num_waiting:
            raise faults.pop()
        return steps()

    monkeypatch.setattr(engine.executor, "step", step)
    before = engine.cache.pool.num_free
    with pytest.raises(LegokvError, match="a step failed: IndexError: list index"):
        answer(service, command("unlucky", CHUNKS[0]))
    assert free_pages(engine, before) == before
    assert len(answer(service, command("lucky"))[0]) == 12


def test_on_a_cpu_the_computing_thread_gives_way_to_those_that_carry_messages(
    service: EngineService,
) -> None:
    answer(service, command("one", CHUNKS[0]))
    computing = next(t.native_id for t in threading.enumerate() if t.name == "scheduler")
    assert computing is not None
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert os.getpriority(os.PRIO_PROCESS, computing) == max(COMPUTE_NICENESS, ours)
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == ours, "only that thread has changed"


def test_an_error_is_an_event_in_the_reply(service: EngineService) -> None:
    (reply,) = service.replies(b'{"type": "Next", "request_id": "x"}')
    assert reply.final
    assert b'"kind":"NotFound"' in reply.values["events"]  # type: ignore[operator]
    (reply,) = service.replies(b"nonsense")
    assert InvalidRequest.__name__.encode() in reply.values["events"]  # type: ignore[operator]

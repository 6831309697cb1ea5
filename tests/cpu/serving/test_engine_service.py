"""The engine's process without Triton: commands from many threads, one thread that computes."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from legokv import Engine, EngineSettings
from legokv.engine.request import Finished, Token
from legokv.engine.sampling import SamplingOptions
from legokv.errors import (
    Cancelled,
    EngineGone,
    InvalidRequest,
    LaunchRefused,
    LegokvError,
    StepFailed,
)
from legokv.runners.eager import EagerRunner
from legokv.serving.ending import EndingWatch, tell_ending
from legokv.serving.engine_service import COMPUTE_NICENESS, EngineService
from legokv.serving.event_stream import EventInbox, Events
from legokv.serving.messages import (
    Cancel,
    Compile,
    Compiled,
    Done,
    Drop,
    Failed,
    Generate,
    PromptSegment,
    Unknown,
    encode_command,
    error_of,
)
from legokv.serving.settings import Settings
from legokv.step.batch import StepBatch

POOL_TOKENS = 1024
FRESH = PromptSegment((40, 41, 42))
SPANS = tuple(tuple(range(10 * n, 10 * n + 40)) for n in range(5))


@pytest.fixture
def engine(tiny_engine_folder: Callable[[], Path], tmp_path: Path) -> Engine:
    return Engine.open(
        tiny_engine_folder(), settings=EngineSettings(pool_tokens=POOL_TOKENS, cache_dir=tmp_path)
    )


@pytest.fixture
def inbox() -> Iterator[EventInbox]:
    made = EventInbox()
    yield made
    made.close()


class Asker:
    """What a model that asks the engine does: commands, and answers from its inbox."""

    def __init__(self, engine: Engine, inbox: EventInbox) -> None:
        self.process, self.inbox = EngineService(engine), inbox
        self.events = self.process.events
        self._engine = engine

    def chunk(self, ids: tuple[int, ...], *, persistent: bool = True) -> PromptSegment:
        return PromptSegment(ids, self._engine.chunk(ids).key, persistent)

    @contextmanager
    def asked(self, command: Generate) -> Iterator[Events]:
        """The queue of an answer that was begun."""
        with self.inbox.expect(command.request_id) as events:
            assert self.events(replace(command, reply_to=self.inbox.address)) == [Done()]
            yield events


@pytest.fixture
def service(engine: Engine, inbox: EventInbox) -> Iterator[Asker]:
    made = Asker(engine, inbox)
    yield made
    made.process.close()


def command(
    request_id: str, *segments: PromptSegment, max_tokens: int = 12, link_tokens: int = 16
) -> Generate:
    return Generate(
        request_id,
        "",
        "default",
        (*segments, FRESH),
        max_tokens,
        "legolink",
        link_tokens,
        SamplingOptions(),
    )


@pytest.mark.parametrize(
    ("mode", "lack", "words"),
    [
        ("guided", {"no_attention": "which it does not say: open another"}, "say: open another$"),
        ("guided-drift", {"gives_drift": False}, "an engine's plan does not: take mode 'guided'"),
    ],
)
def test_a_server_whose_usual_mode_its_runner_cannot_answer_in_does_not_start(
    tiny_engine_folder: Callable[[], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    lack: dict[str, object],
    words: str,
) -> None:
    for name, value in lack.items():
        monkeypatch.setattr(EagerRunner, name, value)
    settings = Settings(
        engine=tiny_engine_folder(), cache_dir=tmp_path, pool_tokens=256, default_mode=mode
    )
    with pytest.raises(InvalidRequest, match=f"^default_mode '{mode}' .*{words}"):
        EngineService.open(settings)
    EngineService.open(replace(settings, default_mode="spread")).close()


def answer(service: Asker, asked: Generate) -> tuple[list[int], Finished]:
    """All tokens and the end of one answer."""
    with service.asked(asked) as events:
        return rest(events)


def rest(events: Events) -> tuple[list[int], Finished]:
    """What is still to come of an answer."""
    ids = []
    while isinstance(event := events.get(timeout=60), Token):
        ids.append(event.id)
    if isinstance(event, Failed):
        raise error_of(event)
    assert isinstance(event, Finished)
    return ids, event


def free_pages(engine: Engine, expected: int) -> int:
    """Free pages once they are `expected`, or after a minute."""
    deadline = time.monotonic() + 60
    while engine.cache.pool.num_free != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return engine.cache.pool.num_free


def test_many_requests_at_once_answer_as_the_library_does_alone(
    engine: Engine, service: Asker, tiny_engine_folder: Callable[[], Path]
) -> None:
    asked = [
        command(f"r{n}", *map(service.chunk, SPANS[n % 5 :] + SPANS[: n % 5])) for n in range(10)
    ]
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda one: answer(service, one)[0], asked))
    alone = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=POOL_TOKENS))
    for one, ids in zip(asked, answers, strict=True):
        segments = [alone.compile(piece.token_ids) for piece in one.segments[:-1]]
        tokens = alone.generate([*segments, FRESH.token_ids], max_tokens=12)
        assert ids == [token.id for token in tokens]


def test_the_last_event_says_what_the_answer_took(service: Asker) -> None:
    ids, last = answer(service, command("r", *map(service.chunk, SPANS[:2])))
    assert last.finish_reason == "length"
    assert last.usage.generated_tokens == len(ids) == 12
    assert (last.usage.prompt_tokens, last.usage.recomputed_tokens) == (83, 16)


def test_a_chunk_is_known_by_its_key_once_its_tokens_came(service: Asker) -> None:
    whole = service.chunk(SPANS[0])
    by_key = replace(whole, token_ids=())
    unknown = Unknown((by_key.key or "",))
    assert service.events(command("r", by_key, by_key)) == [unknown]
    ids, _ = answer(service, command("r", whole))
    assert answer(service, command("r", by_key))[0] == ids
    foreign = replace(command("r", by_key), namespace="tenant")
    assert service.events(foreign) == [unknown]
    assert service.events(Drop(unknown.keys)) == [Done()]
    assert service.events(command("r", by_key)) == [unknown]


@pytest.mark.parametrize("refused", [{"max_tokens": 9999}, {"max_tokens": 1500}])
def test_a_refused_request_makes_no_key_known(service: Asker, refused: dict[str, int]) -> None:
    whole = service.chunk(SPANS[0])
    with pytest.raises(LegokvError):
        service.events(replace(command("r", whole, **refused), reply_to=service.inbox.address))
    by_key = replace(whole, token_ids=())
    assert service.events(command("r", by_key)) == [Unknown((by_key.key or "",))]


def test_an_answer_that_waits_is_cancelled_as_soon_as_its_asker_is_gone(
    engine: Engine, service: Asker
) -> None:
    """No event is due to it that would tell of the loss."""
    asker = subprocess.Popen(
        [sys.executable, "-c", LISTENING], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    with asker, service.asked(command("mine", max_tokens=900)) as mine:
        assert asker.stdout is not None
        address = asker.stdout.readline().strip()
        service.events(replace(command("left", max_tokens=900), reply_to=address))
        assert isinstance(mine.get(timeout=60), Token)
        assert engine.executor.num_waiting == 1
        asker.kill()
        deadline = time.monotonic() + 60
        while engine.executor.num_waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (engine.executor.num_waiting, engine.executor.num_running) == (0, 1)
        service.events(Cancel("mine"))


def test_a_key_that_is_not_its_tokens_is_refused(service: Asker) -> None:
    wrong = replace(service.chunk(SPANS[0]), token_ids=SPANS[1])
    with pytest.raises(
        InvalidRequest, match=r"these 40 tokens are chunk \w{12} of this engine, not"
    ):
        service.events(command("r", wrong))


def test_a_cancelled_answer_gives_its_pages_back_and_its_neighbour_goes_on(
    engine: Engine, service: Asker
) -> None:
    before = engine.cache.pool.num_free
    first = service.chunk(SPANS[0])
    with (
        service.asked(command("long", max_tokens=700)) as long,
        service.asked(command("short", first)) as short,
    ):
        assert service.events(Cancel("long")) == [Done()]
        ids, _ = rest(short)
        with pytest.raises(Cancelled):
            rest(long)
    # What is left is the neighbour's chunk of 40 tokens, in 3 pages.
    assert free_pages(engine, before - 3) == before - 3
    assert answer(service, command("again", first))[0] == ids


def test_cancelling_what_is_not_there_does_nothing(service: Asker) -> None:
    assert service.events(Cancel("nobody")) == [Done()]


def test_answers_whose_asker_is_gone_are_cancelled_and_another_s_go_on(
    engine: Engine, service: Asker
) -> None:
    before = engine.cache.pool.num_free
    asker = subprocess.Popen(
        [sys.executable, "-c", LISTENING], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    with asker, service.asked(command("mine", max_tokens=600)) as mine:
        assert asker.stdout is not None
        address = asker.stdout.readline().strip()
        service.events(replace(command("left", max_tokens=380), reply_to=address))
        asker.kill()
        ids, last = rest(mine)
    assert last.finish_reason in ("stop", "length")
    assert free_pages(engine, before) == before
    # Both ask the same: to its end, the other would have had the first of these tokens.
    assert engine.executor.metrics.generated_tokens < len(ids) + min(len(ids), 380)


# Takes one connection and reads nothing of it.
LISTENING = """
from legokv.serving.event_stream import EventInbox
print(EventInbox().address, flush=True)
input()
"""


def test_an_asker_that_nobody_can_reach_is_told_so_and_nothing_is_begun(
    engine: Engine, service: Asker
) -> None:
    with pytest.raises(InvalidRequest, match="no events can be sent to '/nowhere/socket'"):
        service.events(replace(command("r"), reply_to="/nowhere/socket"))
    assert (engine.executor.num_running, engine.executor.num_waiting) == (0, 0)


def test_a_compiled_chunk_is_found_by_requests_and_a_dropped_one_is_not(
    service: Asker, tmp_path: Path
) -> None:
    (compiled,) = service.events(Compile("default", (service.chunk(SPANS[0]),)))
    assert isinstance(compiled, Compiled)
    assert list(tmp_path.rglob(f"{compiled.key}.safetensors"))
    assert answer(service, command("a", service.chunk(SPANS[0])))[1].usage.compiled_tokens == 0
    assert service.events(Drop((compiled.key,))) == [Done()]
    assert not list(tmp_path.rglob(f"{compiled.key}.safetensors"))
    assert answer(service, command("b", service.chunk(SPANS[0])))[1].usage.compiled_tokens == 40


def test_a_chunk_that_is_not_persistent_leaves_no_file(service: Asker, tmp_path: Path) -> None:
    passing = service.chunk(tuple(range(30)), persistent=False)
    answer(service, command("a", passing))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (command("r", max_tokens=9999), "max_tokens 9999 exceed the model's context of 2048"),
        (command("r", max_tokens=1500), r"needs \d+ pages of 16 tokens, the pool has 64"),
        (command("r", PromptSegment((1, -7), "00")), "token ids lie between 0 and"),
        (command("r", PromptSegment((1, -7))), "token ids lie between 0 and"),
        (command("r", link_tokens=-1), "link_tokens is 0 or more, not -1"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_the_next_is_answered(
    service: Asker, asked: Generate, message: str
) -> None:
    with pytest.raises(LegokvError, match=message):
        service.events(replace(asked, reply_to=service.inbox.address))
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


def failed_steps(engine: Engine) -> dict[str, float]:
    """What is published of steps that failed, by whose fault it was."""
    name = "legokv_failed_steps_total"
    return {s.labels[0][1]: s.value for s in engine.samples() if s.family.name == name}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_step_of_the_model_that_fails_ends_its_requests_and_the_next_is_answered(
    engine: Engine, service: Asker, failing: list[Exception], fault: Exception, times: int
) -> None:
    unlucky = [
        command("compiling", service.chunk(SPANS[0])),
        command("linking"),
        Compile("default", (service.chunk((5, 6, 7)),)),
    ]
    idle = engine.cache.pool.num_free - 6  # two chunks of 40 tokens stay, each in 3 pages
    expected = answer(
        service, command("expected", service.chunk(SPANS[1]), service.chunk(SPANS[2]))
    )[0]
    for number in range(times * len(unlucky)):
        failing.append(fault)
        asked = unlucky[number % len(unlucky)]
        with pytest.raises(StepFailed, match=f"a step failed: .*{fault}"):
            service.events(asked) if isinstance(asked, Compile) else answer(service, asked)
        assert not failing
        assert free_pages(engine, idle) == idle
    assert (
        answer(service, command("lucky", service.chunk(SPANS[1]), service.chunk(SPANS[2])))[0]
        == expected
    )
    assert len(answer(service, command("linking"))[0]) == 12
    assert isinstance(service.events(Compile("default", (service.chunk((5, 6, 7)),)))[0], Compiled)
    assert failed_steps(engine) == {"runner": 3 * times, "engine": 0}


@pytest.mark.ends_all
def test_what_nobody_foresaw_in_a_step_ends_all_requests_and_the_next_is_answered(
    engine: Engine, service: Asker, monkeypatch: pytest.MonkeyPatch
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
        answer(service, command("unlucky", service.chunk(SPANS[0])))
    assert failed_steps(engine) == {"runner": 0, "engine": 1}
    assert free_pages(engine, before) == before
    assert len(answer(service, command("lucky"))[0]) == 12


def test_on_a_cpu_the_computing_thread_gives_way_to_those_that_carry_messages(
    service: Asker,
) -> None:
    answer(service, command("one", service.chunk(SPANS[0])))
    computing = next(t.native_id for t in threading.enumerate() if t.name == "scheduler")
    assert computing is not None
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert os.getpriority(os.PRIO_PROCESS, computing) == max(COMPUTE_NICENESS, ours)
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == ours, "only that thread has changed"


def test_an_error_is_an_event_in_the_reply(service: Asker) -> None:
    body = encode_command(command("r", max_tokens=9999))
    (reply,) = service.process.replies(body)
    assert reply.final
    assert InvalidRequest.__name__.encode() in reply.values["events"]  # type: ignore[operator]
    (reply,) = service.process.replies(b"nonsense")
    assert InvalidRequest.__name__.encode() in reply.values["events"]  # type: ignore[operator]


def test_a_server_s_end_ends_what_is_under_way_and_what_comes_later(
    service: Asker, tmp_path: Path
) -> None:
    watch = EndingWatch(tmp_path, service.process.end_all)
    with service.asked(command("r", max_tokens=900)) as events:
        assert isinstance(events.get(timeout=60), Token)
        tell_ending(tmp_path, "the server stops: ask again")
        with pytest.raises(EngineGone, match="the server stops: ask again"):
            rest(events)
    watch.close()
    with pytest.raises(EngineGone, match="the server stops"):
        service.events(Compile("default", (service.chunk(SPANS[0]),)))
    with pytest.raises(EngineGone, match="the server stops"):
        answer(service, command("late"))


def test_an_ending_that_nobody_told_of_ends_nothing(service: Asker, tmp_path: Path) -> None:
    watch = EndingWatch(tmp_path, service.process.end_all)
    (tmp_path / "ending.new").write_text("half")
    assert len(answer(service, command("r"))[0]) == 12
    watch.close()

"""The executor over a fake runner: errors end those they concern, and nobody else."""

import errno
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from fake_runner import Fault, World, answer_to, chunk, events, tokens

from legokv.engine import schedule
from legokv.engine.jobs import Finished, Guide
from legokv.engine.request import AnswerOptions, Token
from legokv.engine.sampling import SamplingOptions
from legokv.errors import Busy, Cancelled, LaunchRefused, PoolFull, StepFailed

NOTHING_HELD = (0, 0, 0, 0)
ERRORS = (
    LaunchRefused("no kernel for head size 7"),
    StepFailed("TensorRT refused to execute a step"),
    MemoryError(),
    torch.OutOfMemoryError("no memory: 3 GiB\nwere asked for"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("unexpected"),
    IndexError("list index out of range"),
    OSError(errno.EIO, "Input/output error"),
    AssertionError("a bug"),
)
# A RuntimeError is told by its words.
CODES = {
    LaunchRefused: "UNSUPPORTED",
    MemoryError: "UNAVAILABLE",
    torch.OutOfMemoryError: "UNAVAILABLE",
}
QUESTION = (7, 8, 9)


def named(error):
    return type(error).__name__


def said_of(error):
    """The sentence a request hears of an error."""
    line = str(error).partition("\n")[0]
    named_so = [] if isinstance(error, StepFailed) else [named(error)]
    return ": ".join(["a step failed", *named_so, *filter(None, [line])])


def over(job):
    """The one error that a job ended with, after any tokens."""
    *before, last = events(job)
    assert isinstance(last, StepFailed), last
    assert all(isinstance(event, Token) for event in before)
    return last


# Which step of a request over a new chunk fails: by what only that step computes.
STEPS = {
    "compile": lambda batch: 105 in batch.input_ids and len(batch.input_ids) >= 10,
    "link": lambda batch: 9 in batch.input_ids,
    "decode": lambda batch: batch.positions.tolist() == [13],
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", ERRORS, ids=named)
def test_a_failed_step_ends_its_request_frees_all_it_held_and_the_next_is_answered(
    error, step, times, caplog
):
    world, asked = World(), (chunk(1), QUESTION)
    world.runner.faults.append(Fault("run", error, times, STEPS[step]))
    for _ in range(times):
        job = world.ask(*asked)
        world.finish()
        ended = over(job)
        assert str(ended) == said_of(error)
        no_memory = "can't allocate memory" in str(error)
        assert ended.code == ("UNAVAILABLE" if no_memory else CODES.get(type(error), "INTERNAL"))
        assert world.held == NOTHING_HELD
        assert caplog.records[-1].exc_info[1] is error
    assert world.answer(*asked) == answer_to([*chunk(1).token_ids, *QUESTION], 3)
    assert world.held == NOTHING_HELD


def test_all_who_wait_for_a_chunk_end_when_its_step_fails_and_it_is_compiled_again():
    world = World()
    world.runner.faults.append(Fault("run", MemoryError("none left")))
    waiting = [world.ask(chunk(1), QUESTION), world.compile(chunk(1)), world.ask(chunk(1), [5])]
    world.finish()
    assert [str(over(job)) for job in waiting] == ["a step failed: MemoryError: none left"] * 3
    assert (world.held, world.cache.find("key 1")) == (NOTHING_HELD, None)
    assert world.answer(chunk(1), QUESTION) == answer_to([*chunk(1).token_ids, *QUESTION], 3)


def test_who_has_no_turn_in_a_failed_step_and_who_waits_for_pages_is_answered():
    world = World(num_pages=5, max_step_tokens=1)
    unlucky, other = world.ask([1, 2]), world.ask([3, 4])
    waiting = world.ask([5] * 14, max_tokens=2)
    world.runner.faults.append(Fault("run", IndexError("9"), when=lambda b: 2 in b.input_ids))
    world.finish()
    assert str(over(unlucky)) == "a step failed: IndexError: 9"
    assert tokens(other) == answer_to([3, 4], 3)
    assert tokens(waiting) == answer_to([5] * 14, 2)


def test_too_few_rows_of_logits_are_an_error_that_says_so(monkeypatch):
    world = World()
    whole = world.runner.run
    jobs = [world.ask([1, 2]), world.ask([3, 4])]
    monkeypatch.setattr(world.runner, "run", lambda batch: whole(batch)[:1])
    world.executor.step()
    assert {str(over(job)) for job in jobs} == {"a step failed: 2 rows of logits are due, 1 came"}
    monkeypatch.undo()
    assert world.answer([1, 2]) == answer_to([1, 2], 3)


@pytest.mark.parametrize("error", ERRORS, ids=named)
def test_a_copy_of_pages_that_fails_ends_that_request_alone(error):
    world = World()
    world.answer(chunk(1), QUESTION)
    running = world.ask([1, 2], max_tokens=12)
    world.executor.step()
    world.runner.faults.append(Fault("copy_pages", error))
    # Linked in another order, the first tokens of a chunk are computed in a copy of its page.
    unlucky = world.ask([5, 6], chunk(1), QUESTION)
    world.finish()
    assert str(over(unlucky)) == said_of(error)
    assert tokens(running) == answer_to([1, 2], 12)
    assert world.held == NOTHING_HELD
    whole = [5, 6, *chunk(1).token_ids, *QUESTION]
    assert world.answer([5, 6], chunk(1), QUESTION) == answer_to(whole, 3)


def test_a_copy_that_fails_when_several_answers_begin_ends_that_request_alone():
    world = World()
    drawn = {
        "sampling": SamplingOptions(temperature=1, top_k=1, seed=3),
        "answering": AnswerOptions(num_return_sequences=3),
    }
    running = world.ask([1, 2], max_tokens=6)
    unlucky = world.ask([5, 6], **drawn)
    world.runner.faults.append(Fault("copy_pages", MemoryError("none left")))
    world.finish()
    assert str(over(unlucky)) == "a step failed: MemoryError: none left"
    assert tokens(running) == answer_to([1, 2], 6)
    assert world.held == NOTHING_HELD
    again = world.ask([5, 6], **drawn)
    world.finish()
    assert sorted(tokens(again)) == sorted(3 * answer_to([5, 6], 3))


@pytest.mark.parametrize("fails", ["the import", "the read"])
@pytest.mark.parametrize("error", ERRORS, ids=named)
def test_a_chunk_whose_load_fails_is_compiled_again_and_the_answer_is_right(
    error, fails, monkeypatch, caplog
):
    world = World(disk_bytes=10_000)
    world.compile(chunk(1))
    world.finish()
    world.cache.drop("key 1")
    if fails == "the import":
        world.runner.faults.append(Fault("import_pages", error))
    else:
        monkeypatch.setattr(world.disk, "read", lambda chunk: raising(error))
    assert world.answer(chunk(1), QUESTION) == answer_to([*chunk(1).token_ids, *QUESTION], 3)
    assert world.held == NOTHING_HELD
    counters = world.executor.counters
    assert (counters.loaded_chunks, counters.compiled_chunks) == (0, 2)
    assert error in [record.exc_info[1] for record in caplog.records]


def raising(error):
    raise error


def test_of_two_chunks_the_one_that_loads_is_not_compiled():
    world = World(disk_bytes=10_000)
    both = [chunk(1), chunk(2)]
    for one in both:
        world.compile(one)
    world.finish()
    for one in both:
        world.cache.drop(one.key)
    world.runner.faults.append(Fault("import_pages", OSError("5")))
    ids = [*both[0].token_ids, *both[1].token_ids, *QUESTION]
    assert world.answer(*both, QUESTION) == answer_to(ids, 3)
    assert world.executor.counters.loaded_chunks == 1


def test_a_tier_is_asked_for_a_chunk_once_before_it_is_compiled_and_once_before_it_is_stored():
    world, asked = World(host_bytes=10_000, disk_bytes=10_000), []
    for tier in (world.host, world.disk):
        has = tier.has
        tier.has = lambda key, has=has, name=tier.name: asked.append(name) or has(key)
    world.answer(chunk(1), QUESTION)
    # Before the request waits: whether it is fetched; before the KV is copied: whether to keep it.
    assert sorted(asked) == ["disk", "disk", "host"]
    assert world.disk.stats().writes == 1


def test_a_chunk_that_could_not_be_kept_on_its_way_out_disturbs_nobody(caplog):
    world = World(num_pages=6, host_bytes=10_000)
    world.answer(chunk(1), QUESTION)
    world.runner.faults.append(Fault("export_pages", RuntimeError("no")))
    assert world.answer(chunk(2), QUESTION) == answer_to([*chunk(2).token_ids, *QUESTION], 3)
    assert "a chunk that left the pool was not kept" in caplog.text
    assert world.cache.find("key 1") is None
    assert not world.host.has("key 1")


def test_a_chunk_that_could_not_be_stored_answers_requests_but_is_no_compiled_one(monkeypatch):
    world = World(disk_bytes=10_000)
    monkeypatch.setattr(world.disk, "write", lambda chunk, kv: raising(OSError("no")))
    compiling, asking = world.compile(chunk(1)), world.ask(chunk(1), QUESTION)
    world.finish()
    assert str(over(compiling)) == "a step failed: OSError: no"
    assert tokens(asking) == answer_to([*chunk(1).token_ids, *QUESTION], 3)
    assert (world.held, world.disk.has("key 1")) == (NOTHING_HELD, False)
    monkeypatch.undo()
    again = world.compile(chunk(1))
    world.finish()
    assert isinstance(events(again)[-1], Finished)
    assert world.disk.has("key 1")


@pytest.mark.parametrize("call", ["export_pages", "import_pages"])
def test_a_chunk_that_could_not_be_rounded_to_its_stored_form_is_not_used(call):
    world = World(disk_bytes=10_000, stored_dtype="int8")
    world.runner.faults.append(Fault(call, MemoryError("none left")))
    compiling, asking = world.compile(chunk(1)), world.ask(chunk(1), QUESTION)
    running = world.ask([1, 2], max_tokens=6)
    world.finish()
    assert str(over(compiling)) == str(over(asking)) == "a step failed: MemoryError: none left"
    assert tokens(running) == answer_to([1, 2], 6)
    assert (world.held, world.cache.find("key 1")) == (NOTHING_HELD, None)
    assert world.answer(chunk(1), QUESTION) == answer_to([*chunk(1).token_ids, *QUESTION], 3)


def test_a_tier_that_cannot_say_what_it_has_ends_the_request_that_asked(monkeypatch):
    world = World(disk_bytes=10_000)
    monkeypatch.setattr(world.disk, "has", lambda key: raising(KeyError(key)))
    unlucky = world.compile(chunk(1))
    running = world.ask([1, 2])
    world.finish()
    assert str(over(unlucky)) == "a step failed: KeyError: 'key 1'"
    assert tokens(running) == answer_to([1, 2], 3)
    monkeypatch.undo()
    again = world.compile(chunk(1))
    world.finish()
    assert isinstance(events(again)[-1], Finished)


def test_a_chunk_that_cannot_even_be_begun_leaves_nothing_behind(monkeypatch):
    world = World()
    monkeypatch.setattr(
        "legokv.engine.executor.chunk_sequence", lambda *_: raising(MemoryError("none"))
    )
    unlucky = world.ask(chunk(1), chunk(2), QUESTION)
    world.finish()
    assert str(over(unlucky)) == "a step failed: MemoryError: none"
    assert (world.held, world.cache.residents) == (NOTHING_HELD, ())
    monkeypatch.undo()
    assert world.answer(chunk(1), QUESTION) == answer_to([*chunk(1).token_ids, *QUESTION], 3)


@pytest.mark.parametrize("num_answers", [1, 3])
def test_a_token_that_cannot_be_drawn_ends_that_request_alone(num_answers):
    world = World()
    unlucky = world.ask(
        [5, 6],
        max_tokens=6,
        sampling=SamplingOptions(temperature=1, top_k=1, seed=3),
        answering=AnswerOptions(num_return_sequences=num_answers),
    )
    running = world.ask([1, 2], max_tokens=6)
    world.executor.step()
    world.executor.step()
    # Only the first answer's sampler breaks: the others' rows of that step have nobody any more.
    answer = unlucky._answers[0]
    answer._sampler.draw = lambda row, banned: raising(FloatingPointError("NaN"))
    world.finish()
    assert str(over(unlucky)) == "a step failed: FloatingPointError: NaN"
    assert tokens(running) == answer_to([1, 2], 6)
    assert world.held == NOTHING_HELD


@pytest.mark.parametrize("call", ["run", "copy_pages", "import_pages"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=named)
def test_an_interrupt_passes_through_and_the_request_goes_on_with_the_next_step(error, call):
    world = World(disk_bytes=10_000)
    world.compile(chunk(1))
    world.finish()
    world.cache.drop("key 1")
    world.runner.faults.append(Fault(call, error))
    job = world.ask([5, 6], chunk(1), QUESTION)
    with pytest.raises(type(error)):
        world.finish()
    world.finish()
    assert tokens(job) == answer_to([5, 6, *chunk(1).token_ids, *QUESTION], 3)
    assert world.held == NOTHING_HELD


def turns(world):
    """The tokens each of the world's steps computed."""
    return [batch.input_ids.tolist() for batch in world.runner.batches]


@pytest.mark.parametrize("newcomer", ["a request", "a compile"])
def test_newcomers_do_not_overtake_those_who_wait_for_their_turn(newcomer):
    world = World(max_step_tokens=1)
    for _ in range(4):
        world.answer([90])
    first, second = world.ask([1, 2, 3]), world.ask([11, 12, 13])
    world.executor.step()
    third = world.ask([21, 22]) if newcomer == "a request" else world.compile(chunk(2, 2))
    for _ in range(3):
        world.executor.step()
    new = 21 if newcomer == "a request" else 200
    assert turns(world)[-4:] == [[1], [11], [2], [new]]
    world.finish()
    assert tokens(first) == answer_to([1, 2, 3], 3)
    assert tokens(second) == answer_to([11, 12, 13], 3)
    assert events(third)


def test_however_many_come_one_who_waits_has_its_turn():
    world = World(num_pages=64, max_step_tokens=1)
    for _ in range(4):
        world.answer([90])
    waiting = world.ask([11, 12, 13], max_tokens=2)
    for number in range(30):
        world.ask([20 + number], max_tokens=1)
        world.executor.step()
    assert waiting.usage.time_to_first_token_seconds


def test_a_chunk_dropped_while_it_is_read_is_read_to_the_end():
    world = World(num_pages=12)
    ids = [*chunk(1).token_ids, *QUESTION]
    reading = world.ask(chunk(1), QUESTION, max_tokens=9)
    world.executor.step()
    world.executor.step()
    world.executor.drop("key 1")
    others = [world.ask(chunk(number), [5], max_tokens=1) for number in (2, 3)]
    world.finish()
    assert tokens(reading) == answer_to(ids, 9)
    assert [tokens(o) for o in others] == [
        answer_to([*chunk(number).token_ids, 5], 1) for number in (2, 3)
    ]
    assert world.cache.find("key 1") is None
    assert world.held == NOTHING_HELD


def test_a_chunk_dropped_while_it_is_compiled_is_used_by_all_who_ask_for_it():
    world = World(max_step_tokens=4)
    asking = [world.ask(chunk(1), QUESTION)]
    world.executor.step()
    world.executor.drop("key 1")
    asking.append(world.ask(chunk(1), QUESTION))
    world.finish()
    expected = answer_to([*chunk(1).token_ids, *QUESTION], 3)
    assert [tokens(one) for one in asking] == [expected] * 2
    assert world.executor.counters.compiled_chunks == 1
    assert world.held == NOTHING_HELD


@pytest.mark.ends_all
def test_a_step_that_cannot_be_planned_for_anyone_ends_all_and_the_next_is_answered(monkeypatch):
    world = World(num_pages=10)
    unlucky = [world.ask([1, 2]), world.ask(chunk(1), QUESTION)]
    behind = world.ask([1] * 28, max_tokens=2)
    with monkeypatch.context() as patch:
        one = schedule.step_batch
        patch.setattr(
            schedule,
            "step_batch",
            lambda p, *more: one(p, *more) if len(p) == 1 else raising(IndexError("no such page")),
        )
        assert world.executor.step()
    assert [str(over(one)) for one in unlucky] == ["a step failed: IndexError: no such page"] * 2
    world.finish()
    assert tokens(behind) == answer_to([1] * 28, 2)
    assert world.answer(chunk(1), QUESTION) == answer_to([*chunk(1).token_ids, *QUESTION], 3)
    assert world.held == NOTHING_HELD


def test_a_job_that_no_step_can_be_planned_for_ends_alone():
    world = World()
    unlucky, others = world.ask([1, 2], max_tokens=9), [world.ask([3, 4]), world.ask(chunk(1), [5])]
    world.executor.step()
    world.executor.step()
    unlucky.sequences[0].table = None
    world.finish()
    assert str(over(unlucky)).startswith("a step failed: TypeError: ")
    assert [tokens(one) for one in others] == [
        answer_to(ids, 3) for ids in ([3, 4], [*chunk(1).token_ids, 5])
    ]
    assert world.held == NOTHING_HELD


class Deaf:
    """An asker that takes no event."""

    def put(self, event):
        raise BrokenPipeError("nobody reads")


@pytest.mark.parametrize("ends", ["by its end", "by a cancel", "by a failed step"])
def test_whoever_cannot_be_told_of_an_end_ends_alone(ends):
    world = World()
    deaf, running = world.ask([5, 6]), world.ask([1, 2], max_tokens=6)
    deaf.events = Deaf()
    deaf.cancelled = ends == "by a cancel"
    if ends == "by a failed step":
        world.runner.faults.append(Fault("run", IndexError("9")))
        world.finish()
        assert str(over(running)) == "a step failed: IndexError: 9"
    else:
        world.finish()
        assert tokens(running) == answer_to([1, 2], 6)
    assert world.held == NOTHING_HELD


@dataclass(frozen=True)
class Scored:
    """The `count` tokens of each chunk that the first pass scored highest."""

    count: int
    needs_scores: ClassVar[bool] = True
    drift: ClassVar[bool] = False

    def choose(self, chunks, scores=None):
        parts = [scores[c.position : c.position + c.num_tokens] for c in chunks]
        return [np.sort(np.argsort(-part, kind="stable")[: self.count]) for part in parts]


@pytest.mark.parametrize("num_answers", [1, 3])
def test_a_policy_that_needs_scores_chooses_after_a_first_pass_over_its_pages(num_answers):
    world, told = World(), []

    def scores():
        # The first pass is the last step that ran: the question alone, over cached keys.
        told.append(world.runner.batches[-1].input_ids.tolist())
        return np.arange(23, dtype=np.float32)

    drawn = {
        "sampling": SamplingOptions(temperature=1, top_k=1, seed=3),
        "answering": AnswerOptions(num_return_sequences=num_answers),
    }
    job = world.ask(chunk(1), chunk(2), QUESTION, guide=Guide(Scored(3), scores), **drawn)
    world.finish()
    assert told == [list(QUESTION)]
    linked = next(b for b in world.runner.batches if 107 in b.input_ids and 9 in b.input_ids)
    assert linked.input_ids.tolist() == [107, 108, 109, 207, 208, 209, *QUESTION]
    ids = [*chunk(1).token_ids, *chunk(2).token_ids, *QUESTION]
    assert sorted(tokens(job)) == sorted(num_answers * answer_to(ids, 3))
    usage = job.usage
    assert (usage.cached_tokens, usage.recomputed_tokens, usage.fresh_tokens) == (14, 6, 3)
    assert world.held == NOTHING_HELD
    assert world.answer(chunk(1), QUESTION) == answer_to([*chunk(1).token_ids, *QUESTION], 3)


def test_a_guide_that_fails_ends_its_request_alone():
    world = World()
    running = world.ask([1, 2], max_tokens=6)
    guide = Guide(Scored(3), lambda: raising(KeyError("no scores")))
    unlucky = world.ask(chunk(1), QUESTION, guide=guide)
    world.finish()
    assert str(over(unlucky)) == "a step failed: KeyError: 'no scores'"
    assert tokens(running) == answer_to([1, 2], 6)
    assert world.held == NOTHING_HELD


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_cancelled_request_ends_wherever_it_stands_and_frees_what_it_held(steps):
    world = World(num_pages=12, max_step_tokens=6)
    cancelled = world.ask(chunk(1), QUESTION, max_tokens=20)
    behind = world.ask([1] * 20, max_tokens=2)
    for _ in range(steps):
        world.executor.step()
    cancelled.cancelled = True
    world.finish()
    assert isinstance(events(cancelled)[-1], Cancelled)
    assert tokens(behind) == answer_to([1] * 20, 2)
    assert world.held == NOTHING_HELD
    assert cancelled.usage.generated_tokens < 20


def test_what_the_pool_could_never_hold_is_refused_at_once_with_the_numbers():
    world = World(num_pages=5)
    with pytest.raises(PoolFull, match="needs 6 pages of 4 tokens, the pool has 5"):
        world.ask(chunk(1), [5] * 8, max_tokens=3)
    assert not world.executor.step()


def test_a_full_queue_takes_no_more_requests_but_every_compile():
    world = World(max_queue_requests=2)
    waiting = [world.ask([1, n]) for n in (2, 3)]
    with pytest.raises(Busy, match="the queue is full: 2 waiting, max_queue_requests allows 2"):
        world.ask([1, 4])
    compiling = world.compile(chunk(1))
    world.finish()
    assert [tokens(one) for one in waiting] == [answer_to([1, n], 3) for n in (2, 3)]
    assert isinstance(events(compiling)[-1], Finished)


@pytest.mark.parametrize("dropped", ["before it is asked for", "while it is compiled"])
def test_a_chunk_that_was_dropped_is_not_stored_by_who_still_computes_it(dropped):
    world = World(disk_bytes=10_000, host_bytes=10_000, max_step_tokens=4)
    if dropped == "before it is asked for":
        # As a question does that looked its documents up before they were deleted.
        world.compile(chunk(1))
        world.finish()
        world.executor.drop("key 1")
    asking = world.ask(chunk(1), QUESTION)
    world.executor.step()
    if dropped == "while it is compiled":
        world.executor.drop("key 1")
    world.finish()
    assert tokens(asking) == answer_to([*chunk(1).token_ids, *QUESTION], 3)
    assert not world.disk.has("key 1")
    for number in range(2, 12):
        world.answer(chunk(number), QUESTION)
    assert world.cache.find("key 1") is None
    assert not world.host.has("key 1")
    # Registered anew, it is stored.
    world.compile(chunk(1))
    world.finish()
    assert world.disk.has("key 1")

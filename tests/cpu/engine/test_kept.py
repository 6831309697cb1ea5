"""Requests go on from an ended one's own pages: what is computed, what is shared, who may."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runner import Fault, World, answer_to, answered, chunk, events
from texts import random_ids

from legokv import Engine, EngineSettings
from legokv.chunks.chunk import Chunk
from legokv.engine.jobs import Job, Prefill
from legokv.engine.request import AnswerOptions, GenerateRequest, Usage
from legokv.engine.sampling import SamplingOptions
from legokv.errors import StepFailed
from legokv.runners.eager import EagerRunner

DOCUMENTS = [chunk(number) for number in range(1, 9)]
Segments = Sequence[Chunk | Sequence[int]]


def world(**given: Any) -> World:
    return World(**{"num_pages": 256, "max_kept_pages": 256, **given})


def ask(world: World, segments: Segments, namespace: str | None = "a", **options: Any) -> Job:
    return world.ask(*segments, namespace=namespace, **options)


def ended(world: World, segments: Segments, **options: Any) -> tuple[list[int], Usage, int]:
    """The answer, what it took, and how many tokens were computed for it."""
    first = len(world.runner.batches)
    job = ask(world, segments, **options)
    world.finish()
    computed = sum(len(batch.input_ids) for batch in world.runner.batches[first:])
    return *answered(job), computed


def flat(segments: Segments) -> list[int]:
    return [t for s in segments for t in (s.token_ids if isinstance(s, Chunk) else s)]


@pytest.mark.parametrize("mode", ["legolink", "full", "legolink-0", "spread"])
def test_the_second_turn_over_eight_documents_computes_its_new_tokens_and_nothing_else(
    mode: str,
) -> None:
    here = world()
    options: dict[str, Any] = {"mode": mode}
    if mode in ("full", "legolink-0"):
        options["link_tokens"] = None
    question, later = [7, 8, 9], [11, 12, 13, 14, 15]
    first, usage, _ = ended(here, [*DOCUMENTS, question], max_tokens=6, **options)
    assert usage.reused_tokens == 0
    second = [*DOCUMENTS, question + first + later]
    answer, took, computed = ended(here, second, max_tokens=4, **options)
    # The answer's last token was drawn and never computed; of four drawn three are.
    assert (took.recomputed_tokens, took.fresh_tokens) == (0, 1 + len(later))
    assert computed == 1 + len(later) + 3
    assert answer == answer_to(flat(second), 4)
    assert took.reused_tokens == usage.recomputed_tokens + len(question) + len(first) - 1
    assert took.prompt_tokens == took.cached_tokens + took.fresh_tokens == len(flat(second))


def test_a_question_asked_again_computes_its_last_token_alone() -> None:
    here = world()
    asked = [*DOCUMENTS, [7, 8, 9]]
    first, *_ = ended(here, asked)
    again, took, _ = ended(here, asked)
    assert (again, took.fresh_tokens, took.recomputed_tokens) == (first, 1, 0)


def test_two_conversations_over_the_same_documents_share_their_heads_and_go_on_apart() -> None:
    here = world()
    one, two = [*DOCUMENTS, [7, 8, 9]], [*DOCUMENTS, [7, 8, 50, 51]]
    first, *_ = ended(here, one)
    other, took, _ = ended(here, two)
    assert other == answer_to(flat(two), 3)
    assert (took.recomputed_tokens, took.fresh_tokens) == (0, 2)
    for asked, drawn in ((one, first), (two, other)):
        longer = [*DOCUMENTS, [*asked[-1], *drawn, 60]]
        answer, took, _ = ended(here, longer)
        assert (answer, took.fresh_tokens) == (answer_to(flat(longer), 3), 2)


@pytest.mark.parametrize(
    ("other", "num_fresh"),
    [
        ({"namespace": "b"}, 3),
        ({"namespace": None}, 3),
        ({"mode": "full", "link_tokens": None}, 3 + 30),
        ({"mode": "spread"}, 3),
    ],
)
def test_another_namespace_or_choice_goes_on_from_nothing_it_did_not_compute(
    other: dict[str, Any], num_fresh: int
) -> None:
    here = world()
    asked = [*DOCUMENTS[:3], [7, 8, 9]]
    ended(here, asked)
    if other.get("mode") == "spread":
        # The first document stands as it was compiled: up to the second, nothing is computed.
        assert ended(here, asked, **other)[1].reused_tokens == 0
        return
    answer, took, _ = ended(here, asked, **other)
    assert (answer, took.reused_tokens) == (answer_to(flat(asked), 3), 0)


def test_a_document_behind_a_question_begins_where_the_run_ends() -> None:
    here = world()
    first, *_ = ended(here, [DOCUMENTS[0], [7, 8, 9]])
    longer = [DOCUMENTS[0], [7, 8, 9, *first, 20], DOCUMENTS[1], [30]]
    answer, took, _ = ended(here, longer)
    assert answer == answer_to(flat(longer), 3)
    assert (took.reused_tokens, took.fresh_tokens, took.recomputed_tokens) == (5, 3, 2)
    again = [*longer[:-1], [30, *answer, 31]]
    answer, took, _ = ended(here, again)
    assert (answer, took.fresh_tokens, took.recomputed_tokens) == (answer_to(flat(again), 3), 2, 0)


def test_what_is_kept_leaves_for_a_request_that_needs_the_room() -> None:
    here = world(num_pages=12)
    ended(here, [[5] * 30])
    assert here.cache.pool.num_used == 8
    large = [[6] * 40]
    answer, _, _ = ended(here, large)
    assert answer == answer_to(flat(large), 3)
    assert ended(here, [[5] * 30])[1].reused_tokens == 0


def test_a_sequence_that_is_in_the_way_of_the_one_that_goes_on_from_it_leaves_too() -> None:
    here = world(num_pages=12)
    ended(here, [[5] * 8 + [6] * 24])
    other = [[5] * 8 + [7] * 36]
    answer, took, _ = ended(here, other)
    assert (answer, took.reused_tokens) == (answer_to(flat(other), 3), 8)


def test_kept_pages_stay_within_their_budget_and_the_oldest_leave() -> None:
    here = world(max_kept_pages=8)
    for token in (5, 6, 7):
        ended(here, [[token] * 13])
    assert here.cache.pool.num_used == 8
    assert ended(here, [[5] * 13])[1].reused_tokens == 0
    assert ended(here, [[7] * 13])[1].reused_tokens == 12


def test_nothing_is_kept_without_a_budget() -> None:
    here = world(max_kept_pages=0)
    asked = [[5] * 13]
    ended(here, asked)
    assert here.cache.pool.num_used == 0
    assert ended(here, asked)[1].reused_tokens == 0


def test_what_was_computed_over_a_chunk_that_is_dropped_is_forgotten() -> None:
    here = world()
    asked = [*DOCUMENTS[:2], [7, 8, 9]]
    ended(here, asked)
    here.executor.drop(DOCUMENTS[1].key)
    assert here.cache.pool.num_used == 3
    assert ended(here, asked)[1].reused_tokens == 0
    job = ask(here, asked)
    here.executor.step()
    here.executor.drop(DOCUMENTS[0].key)
    here.finish()
    assert answered(job)[0] == answer_to(flat(asked), 3)
    assert ended(here, asked)[1].reused_tokens == 0


def test_of_several_answers_the_prompt_is_kept_and_each_is_its_own() -> None:
    here = world()
    draw = SamplingOptions(temperature=0.01, seed=1)
    two = {"sampling": draw, "answering": AnswerOptions(num_return_sequences=2), "max_tokens": 6}
    asked = [*DOCUMENTS[:2], [7, 8, 9, 10, 11]]
    job = ask(here, asked, **two)
    here.finish()
    expected = answered(job)[0]
    again = ask(here, asked, **two)
    here.finish()
    drawn, took = answered(again)
    assert (drawn, took.reused_tokens) == (expected, 2 + 4)


def test_a_cancelled_and_a_failed_request_leave_nothing() -> None:
    here = world()
    job = ask(here, [[5] * 13], max_tokens=50)
    here.executor.step()
    job.cancelled = True
    here.finish()
    here.runner.faults.append(Fault("run", IndexError("9")))
    failed = ask(here, [[5] * 13])
    here.finish()
    assert isinstance(events(failed)[-1], StepFailed)
    assert here.cache.pool.num_used == 0


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_without_reuse_whatever_is_asked_in_whatever_order(seed: int) -> None:
    chance = random.Random(seed)
    here = world(num_pages=40, max_kept_pages=20, max_step_tokens=chance.choice((5, 64)))
    asked: list[tuple[Job, list[Any], int]] = []
    known: list[list[Any]] = [[[5, 6]]]
    for _ in range(60):
        segments = [*chance.choice(known)]
        segments = segments[: chance.randint(1, len(segments))]
        tail = [chance.randrange(1, 4) for _ in range(chance.randint(1, 9))]
        if chance.random() < 0.5 and not isinstance(segments[-1], Chunk):
            segments[-1] = segments[-1] + tail
        else:
            segments += [chance.choice(DOCUMENTS[:3]), tail]
        if len(flat(segments)) > 60:
            continue
        number = chance.randint(1, 9)
        options = {"mode": "full", "link_tokens": None} if chance.random() < 0.2 else {}
        job = ask(here, segments, chance.choice("ab"), max_tokens=number, **options)
        asked.append((job, segments, number))
        known.append([*segments[:-1], [*segments[-1], *answer_to(flat(segments), number)]])
        for _ in range(chance.randrange(6)):
            here.executor.step()
    here.finish(3000)
    reused = 0
    for job, segments, number in asked:
        drawn, took = answered(job)
        assert drawn == answer_to(flat(segments), number)
        reused += took.reused_tokens
    assert reused > 20
    kept = here.cache.pool.num_used
    assert kept <= 20 + sum(len(r.pages) for r in here.cache.residents)


def test_a_model_s_logits_behind_reused_pages_are_those_without(
    tiny_engine_folder: Callable[[], Path],
) -> None:
    settings = EngineSettings(pool_tokens=2048, max_step_tokens=64, kept_tokens=1024)
    engine = Engine.open(tiny_engine_folder(), settings=settings)
    documents = [engine.compile(random_ids(number, 37)) for number in range(8)]
    logits, answers = [], []
    for namespace in (None, "a"):
        said = random_ids(9, 11)
        for _ in range(2):
            request = GenerateRequest([*documents, said], 6, namespace=namespace)
            said += [token.id for token in engine.answer(request)] + random_ids(10, 5)
        answers.append(said)
        last = GenerateRequest([*documents, said], 0, namespace=namespace)
        (result,) = engine.results(engine.submit(last))
        assert isinstance(result, Prefill)
        assert result.fresh_tokens == (len(said) if namespace is None else 6)
        logits.append(result.logits)
    assert answers[0] == answers[1]
    if isinstance(engine.runner, EagerRunner) and "native" in engine.runner.attention.description:
        assert torch.equal(*logits)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)

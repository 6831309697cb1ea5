"""Who is next: one step as a value, planned from the jobs at hand, run, and finished; and who may
pass a job that waits for pages, so that a giant neither stops the small nor starves.

Grants no pages.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from legokv.chunks.pool import ChunkCache
from legokv.engine.jobs import Job
from legokv.errors import OutOfMemory, StepFailed
from legokv.runners import Runner
from legokv.step.batch import PageTables, StepBatch, step_batch
from legokv.step.sequence import TokenSequence

PASSING_POOL_SHARE = 8
"""A job that passes needs at most the pool's pages divided by this."""
PASSING_MAX_TOKENS = 512
"""A job that passes answers with at most so many tokens: no longer can it keep the first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """What a step computes of one sequence, and for whom."""

    job: Job
    sequence: TokenSequence
    num_tokens: int


@dataclass(frozen=True)
class Step:
    """One run of the model: row n of the `batch` is turn n's."""

    turns: tuple[Turn, ...]
    batch: StepBatch


def plan_step(jobs: Sequence[Job], max_tokens: int, tables: PageTables | None = None) -> Step:
    """The next step of at most `max_tokens` tokens for jobs that all have something to compute.

    Who has gone longest without a turn comes first. One sequence may have more than its share,
    where it cannot be cut: the tokens of a document that drifts. Others like it wait for the next.
    `tables`: the step's before, which is over.
    """
    work = [(sequence, job) for job in jobs for sequence in job.sequences]
    # The sort is stable: of those who had their last turn together, the earlier job comes first.
    work.sort(key=lambda pair: pair[0].last_step)
    shares = share([sequence.num_left for sequence, _ in work], max_tokens)
    turns, may_pass = [], True
    for (sequence, job), tokens in zip(work, shares, strict=True):
        number = sequence.fitting(tokens) if tokens else 0
        if number and (number <= tokens or may_pass):
            may_pass = may_pass and number <= tokens
            turns.append(Turn(job, sequence, number))
    pieces = [turn.sequence.next(turn.num_tokens) for turn in turns]
    return Step(tuple(turns), step_batch(pieces, tables))


def can_plan(job: Job) -> bool:
    """Whether a step could be planned for this job alone."""
    try:
        plan_step([job], 1)
    except Exception:
        log.exception("no step can be planned for a job")
        return False
    return True


def run_step(runner: Runner, step: Step) -> Tensor:
    """Logits [B, V], a row for each turn; StepFailed with the cause for any error."""
    try:
        logits = runner.run(step.batch)
    except Exception as error:
        raise failure(error) from error
    if len(logits) != len(step.turns):
        raise StepFailed(
            f"a step failed: {len(step.turns)} rows of logits are due, {len(logits)} came"
        )
    return logits


def finish_step(step: Step, number: int) -> list[tuple[Turn, int]]:
    """Note that step `number` was computed: the turns that ended a sequence, with their rows."""
    for turn in step.turns:
        turn.sequence.advance(turn.num_tokens, number)
    return [(turn, row) for row, turn in enumerate(step.turns) if not turn.sequence.num_left]


def failure(error: Exception) -> StepFailed:
    """What a request hears of an error in its step, in one line; the log has it whole."""
    line = str(error).strip().splitlines()[:1]
    if isinstance(error, StepFailed):
        return type(error)(": ".join(["a step failed", *line]))
    kind = OutOfMemory if _is_out_of_memory(error) else StepFailed
    return kind(": ".join(["a step failed", type(error).__name__, *line]))


def _is_out_of_memory(error: Exception) -> bool:
    # Torch has no class of its own for a CPU's memory.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def share(demands: Sequence[int], budget: int) -> list[int]:
    """Tokens each of the waiting sequences may compute in this step, at most what it wants.

    `demands`, each 1 or more, is in the order of the sequences' last turns, the longest ago first.
    Everyone has an equal share; what short ones leave goes to the longer. So a decode step or a
    short question never waits for a long compile, and a long compile gets all that is left. With
    no more budget than sequences each gets one token, and whoever gets none is first next time:
    nobody waits more than ceil(sequences / budget) steps for a turn.
    """
    if len(demands) >= budget:
        return [1 if place < budget else 0 for place in range(len(demands))]
    shares = [0] * len(demands)
    left = budget
    order = sorted(range(len(demands)), key=lambda number: demands[number])
    for place, number in enumerate(order):
        equal = -(-left // (len(order) - place))
        shares[number] = min(demands[number], equal, left)
        left -= shares[number]
    return shares


def is_small(job: Job, cache: ChunkCache) -> bool:
    """Whether the job is short and small enough to pass another."""
    return (
        job.max_new_tokens <= PASSING_MAX_TOKENS
        and job.num_pages * PASSING_POOL_SHARE <= cache.pool.num_pages
    )


def passers(waiting: Sequence[Job], holding: Iterable[Job], cache: ChunkCache) -> list[Job]:
    """Those of the `waiting` that may pass the first of them now, in their order.

    None, once the first could run but for those that have passed: it then waits for them alone,
    and they end. What is `holding` pages otherwise came before it, and grows no more.
    """
    first, *behind = waiting
    small = [job for job in behind if job.is_fetched and is_small(job, cache)]
    if not small or (first.is_fetched and _waits_for_passers_alone(first, holding, cache)):
        return []
    return small


def _waits_for_passers_alone(first: Job, holding: Iterable[Job], cache: ChunkCache) -> bool:
    passed = [job.grant for job in holding if job.has_passed and job.grant is not None]
    return cache.would_grant(first.asked_chunks, first.num_private_pages, without=passed)

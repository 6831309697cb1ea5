"""Runs jobs one step at a time: admits them, batches their next tokens, hands out the results.

Chunks a job needs and no tier has are compiled here, once, however many jobs wait for them.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from legokv.chunks.chunk import Chunk, with_all_before
from legokv.chunks.pool import ChunkCache, Grant, Resident
from legokv.chunks.stored_kv import StoredKv
from legokv.chunks.tiers import LowerTiers
from legokv.engine.chunk_jobs import FillJob
from legokv.engine.draw import draw_each
from legokv.engine.jobs import Job, JobEvent, Wait, granted
from legokv.engine.kept import KeptSequences
from legokv.engine.metrics import EngineMetrics
from legokv.engine.sampling import Draw
from legokv.engine.schedule import (
    Turn,
    can_plan,
    failure,
    finish_step,
    passers,
    plan_step,
    run_step,
)
from legokv.engine.transfer import Transfer
from legokv.errors import (
    Busy,
    FormatFailed,
    InvalidRequest,
    LegokvError,
    NotFinite,
    PoolFull,
    PoolTooSmall,
    StepFailed,
)
from legokv.runners import Runner
from legokv.step.batch import PageTables
from legokv.step.sequence import CompiledPages, TokenSequence, chunk_sequence

_FETCHING_SECONDS = 0.05

log = logging.getLogger(__name__)


@dataclass
class Counters:
    """What happened since the start; each should only grow."""

    compiled_chunks: int = 0
    loaded_chunks: int = 0
    steps: int = 0


class Executor:
    """One caller at a time may `step`; `submit` and a job's `cancelled` are for any thread.

    An error of the runner or a tier ends the jobs it concerns with a StepFailed, gives back what
    they held and is logged; the others go on.
    """

    def __init__(
        self,
        runner: Runner,
        cache: ChunkCache,
        tiers: LowerTiers,
        *,
        max_step_tokens: int,
        max_queue_requests: int,
        max_kept_pages: int = 0,
    ) -> None:
        self.counters = Counters()
        self.metrics = EngineMetrics()
        self._runner = runner
        self._cache = cache
        self._kept = KeptSequences(cache, max_kept_pages)
        self._transfer = Transfer(runner, cache, tiers)
        self._tables = PageTables()
        self._max_step_tokens = max_step_tokens
        self._max_queue_requests = max_queue_requests
        # A job is in one of these, in this order: for pages, with pages but without all its
        # chunks, with sequences to compute. A FillJob begins in the last.
        self._waiting: deque[Job] = deque()
        self._granted: list[Job] = []
        self._running: list[Job] = []
        # For those who submit; the thread that steps takes jobs away without it.
        self._joining = threading.Lock()

    @property
    def num_running(self) -> int:
        """Jobs that hold pages. For any thread."""
        return sum(job.filling is None for job in [*self._granted, *self._running])

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for pages, or for stored chunks on their way. For any thread."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a job. PoolTooSmall if it could not run even with the pool to itself, Busy if too
        many requests wait already; compiles, one for each document being registered, always may.
        """
        needed = with_all_before(job.chunks)
        job.num_pages = self._cache.pages_needed(needed, job.num_private_pages)
        if job.num_pages > self._runner.num_pages:
            raise PoolTooSmall(
                f"the request needs {job.num_pages} pages of {self._runner.page_size} tokens, "
                f"the pool has {self._runner.num_pages}"
            )
        if job.is_to_store:
            for chunk in job.chunks:
                self._transfer.want_stored(chunk)
            if self._is_kept(job):
                return
        if not job.waits_in_line:
            self._waiting.append(job)
            return
        # Before others are kept out: it may ask a disk or a network.
        job.prefetch = self._transfer.prefetch(job.chunks)
        with self._joining:
            num_waiting = sum(other.waits_in_line for other in list(self._waiting))
            if num_waiting < self._max_queue_requests:
                self._waiting.append(job)
                return
        self._close_prefetch(job)
        raise Busy(
            f"the queue is full: {num_waiting} waiting, max_queue_requests allows "
            f"{self._max_queue_requests}; ask again later"
        )

    def _is_kept(self, job: Job) -> bool:
        """True if the job is over, for all of it is kept or that cannot be asked.

        Asked when it is submitted, for it may ask a disk or a network: who steps must not.
        """
        try:
            is_kept = all(map(self._transfer.is_kept, job.chunks))
        except Exception as error:
            log.exception("a request failed")
            self._tell(job, failure(error))
            return True
        if is_kept:
            job.kept()
        return is_kept

    def step(self) -> bool:
        """Do one step's work; False if there was none."""
        self._drop_given_up()
        self._admit()
        self._note_line()
        self._start()
        if not self._running:
            return bool(self._waiting or self._granted)
        self._compute()
        return True

    def drop(self, key: str) -> None:
        """Forget a chunk in every tier here; requests that hold it go on."""
        jobs = [*self._granted, *self._running]
        if not any(job.filling and job.filling.chunk.key == key for job in jobs):
            self._cache.drop(key)
        self._transfer.drop(key)
        self._kept.drop(key)

    def _compute(self) -> None:
        """Run the next step and hand out what it ended of the jobs' sequences."""
        try:
            step = plan_step(self._running, self._max_step_tokens, self._tables)
        except Exception as error:
            self._tables = PageTables()
            log.exception("a step could not be planned")
            self._end_those_without_plan(failure(error))
            return
        try:
            logits = run_step(self._runner, step)
        except StepFailed as error:
            log.error("a step failed", exc_info=error.__cause__ or error)
            self.metrics.step_failed("runner")
            self._fail([turn.job for turn in step.turns], error)
            return
        self.counters.steps += 1
        self._hand_out(logits, finish_step(step, self.counters.steps))

    def _hand_out(self, logits: Tensor, ended: Sequence[tuple[Turn, int]]) -> None:
        """Draw the tokens of all sequences that ended together, and tell each its own."""
        draws: list[Draw] = []
        numbers: list[range] = []
        for turn, row in ended:
            first = len(draws)
            with self._ending(turn.job):
                # Without a grant, another of its answers has ended it in this step.
                if turn.job.grant is not None:
                    draws += turn.job.draws(turn.sequence, row)
            numbers.append(range(first, len(draws)))
        drawn = draw_each(logits, draws, self._runner.drawing)
        for (turn, row), own in zip(ended, numbers, strict=True):
            with self._ending(turn.job):
                job, tokens = turn.job, [drawn[number] for number in own]
                if job.grant is not None and job.computed(turn.sequence, logits[row], tokens):
                    self._kept.put(job.sequence(), job.grant)
                    self._end(job)

    def _end_those_without_plan(self, error: StepFailed) -> None:
        """End the jobs that no step can be planned for, or all if it is none of theirs alone."""
        unfit = [job for job in self._running if not can_plan(job)]
        if not unfit:
            self.metrics.step_failed("engine")
        self._fail(unfit or list(self._running), error)

    def _drop_given_up(self) -> None:
        now = time.monotonic()
        for job in [*self._waiting, *self._granted, *self._running]:
            if job.cancelled or now - job.submitted_at >= job.patience_seconds:
                with self._ending(job):
                    error = job.given_up()
                    self._end(job)
                    self._tell(job, error)

    def _end(self, job: Job) -> None:
        """Take a job out wherever it stands, and free what it holds."""
        for jobs in (self._waiting, self._granted, self._running):
            if job in jobs:
                jobs.remove(job)
        if job.grant is not None:
            self._cache.release(job.grant)
            job.grant = None
        self._close_prefetch(job)

    def _close_prefetch(self, job: Job) -> None:
        if job.prefetch is not None:
            job.prefetch.close()
            job.prefetch = None

    def _admit(self) -> None:
        """First come first served, but that small jobs may pass one that must wait (`passers`)."""
        admitted = True
        while admitted and self._waiting:
            with self._ending(self._waiting[0]):
                admitted = self._admitted(self._waiting[0])
        admitted = True
        while admitted and self._waiting:
            holding = [*self._granted, *self._running]
            job = next(iter(passers(list(self._waiting), holding, self._cache)), None)
            if job is None:
                return
            with self._ending(job):
                admitted = self._admitted(job)
                job.has_passed = job.grant is not None

    def _note_line(self) -> None:
        """Those that nobody has looked at yet stand behind one that must wait."""
        for job in list(self._waiting)[1:]:
            if job.waits_for == Wait.IN_A_STEP:
                job.waits_for = Wait.IN_LINE

    def _admitted(self, job: Job) -> bool:
        """Give a job its pages, or end it; False if it must wait."""
        started = time.monotonic()
        if not self._is_fetched(job):
            job.waits_for = Wait.FOR_A_TIER
            return False
        job.asked_chunks = self._chunks_for(job)
        try:
            grant = granted(job, job.asked_chunks, self._cache, self._kept)
        except PoolFull as error:
            if self._granted or self._running:
                job.waits_for = Wait.FOR_PAGES
                return False
            self._end(job)
            self._tell(job, error)
            return True
        job.grant = grant
        place = self._waiting.index(job)
        self._waiting.remove(job)
        self._granted.append(job)
        self._fill_all(grant, job.held)
        if self._lacks_what_stood_before(grant):
            self._ask_for_more(job, grant, place)
            return True
        self._transfer.used(job.chunks)
        self._close_prefetch(job)
        job.admitted(grant, time.monotonic() - started)
        return True

    def _chunks_for(self, job: Job) -> tuple[Chunk, ...]:
        """The job's chunks, and what stands before those that are to be compiled."""
        parts = {chunk.key: chunk for chunk in job.chunks}
        for chunk in job.chunks:
            others = {part.key: part for part in chunk.before if part.key not in parts}
            # No tier, which may be far, is asked about what is linked with all before it anyway.
            absent = others and self._cache.find(chunk.key) is None
            if absent and (job.needs_all_before or not self._transfer.can_load(chunk, job.held)):
                parts = {**others, **parts}
        return tuple(parts.values())

    def _lacks_what_stood_before(self, grant: Grant) -> bool:
        """Whether a chunk that a tier did not have after all cannot be compiled in this grant."""
        return any(not self._can_compile(r.chunk) for r in grant.new if not r.ready)

    def _can_compile(self, chunk: Chunk) -> bool:
        return all(self._cache.find(part.key) is not None for part in chunk.before)

    def _ask_for_more(self, job: Job, grant: Grant, place: int) -> None:
        """Give the pages back, and have the job ask again with what stands before its chunks."""
        job.grant, job.needs_all_before = None, True
        self._granted.remove(job)
        self._cache.release(grant)
        self._waiting.insert(place, job)

    def _is_fetched(self, job: Job) -> bool:
        """True if what the job needs was fetched as far as it could be. Waited for only if there
        is nothing to compute, and not for long.
        """
        coming = job.prefetch
        # Nobody else's answer waits for it: what is running goes on.
        seconds = 0.0 if self._running else _FETCHING_SECONDS
        if coming is not None and not coming.done and not coming.wait(seconds):
            return False
        if job.has_fetched:
            return True
        # What was fetched may have left again, and some was never to be fetched.
        job.has_fetched = True
        far = self._transfer.fetch(with_all_before(job.chunks))
        if far is None:
            return True
        self._close_prefetch(job)
        job.prefetch = far
        return self._is_fetched(job)

    def _fill_all(self, grant: Grant, held: Mapping[str, StoredKv]) -> None:
        """Load each new resident's KV, of the tiers' or what is held, or begin to compile it."""
        try:
            # Before anything is written: the evicted chunks' KV is still in the new pages.
            if grant.evicted:
                with _going_on("a chunk that left the pool was not kept"):
                    self._transfer.keep_evicted(grant.evicted)
            for resident in grant.new:
                with _going_on("a chunk could not be loaded and is compiled again"):
                    self.counters.loaded_chunks += self._transfer.load(resident, held)
        finally:
            # Also after a Ctrl-C: a resident that nobody fills would be waited for without end.
            for resident in grant.new:
                if not resident.ready and self._can_compile(resident.chunk):
                    self._compile(resident)

    def _compile(self, resident: Resident) -> None:
        chunk = resident.chunk
        before = [held for part in chunk.before if (held := self._cache.find(part.key))]
        assert len(before) == len(chunk.before), "a chunk is compiled with all that stands before"
        sequence = chunk_sequence(
            chunk.token_ids,
            resident.pages,
            self._runner.page_size,
            [CompiledPages(r.chunk.start, r.chunk.num_tokens, r.pages) for r in before],
        )
        job = FillJob(resident, sequence, self._filled)
        # Leases of its own: the chunk is compiled to its end, whoever asked for it goes away.
        job.grant = Grant((*before, resident), (), [])
        for held in job.grant.residents:
            self._cache.lease(held)
        self._granted.append(job)

    def _start(self) -> None:
        for job in list(self._granted):
            if job.is_ready:
                with self._ending(job):
                    self._begin(job)

    def _begin(self, job: Job) -> None:
        if not job.start(self._transfer):
            self._end(job)
            return
        for sequence in job.sequences:
            self._check_drifts(sequence)
            sequence.last_step = self.counters.steps
        self._granted.remove(job)
        self._running.append(job)

    def _check_drifts(self, sequence: TokenSequence) -> None:
        """InvalidRequest if a step has no room for what must be computed together."""
        most = max((drift.num_rows for drift in sequence.drifts), default=0)
        if most > self._max_step_tokens:
            raise InvalidRequest(
                f"with drift the {most} tokens of a document that are recomputed are computed "
                f"together, and max_step_tokens allows {self._max_step_tokens}: recompute less of "
                "it, or in a mode without drift"
            )

    def _filled(self, resident: Resident, seconds: float) -> None:
        """A resident's KV was computed: round it as it would be stored, and keep it."""
        stored = self._transfer.settle(resident)
        self._cache.mark_ready(resident)
        self.counters.compiled_chunks += 1
        self.metrics.compile.observe(seconds)
        # A CompileJob, whose promise it is, will try again and say that it could not.
        with _going_on("a compiled chunk was not stored"):
            self._transfer.store(resident, stored)

    @contextmanager
    def _ending(self, job: Job) -> Iterator[None]:
        """Whatever error leaves the block ends this job, and those who wait for what it fills."""
        try:
            yield
        except (NotFinite, FormatFailed, InvalidRequest) as error:
            log.warning("a request failed: %s", error)
            self._fail([job], error)
        except Exception as error:
            log.exception("a request failed")
            self._fail([job], failure(error))

    def _fail(self, jobs: Sequence[Job], error: LegokvError) -> None:
        # A job with several answers is there several times.
        left = list(dict.fromkeys(jobs))
        while left:
            job = left.pop(0)
            lost = job.filling
            self._end(job)
            self._tell(job, error)
            if lost is not None:
                left += [job for job in self._granted if job not in left and job.holds(lost)]

    def _tell(self, job: Job, event: JobEvent) -> None:
        """Hand out a job's last event: who cannot take it must not be the end of another."""
        with _going_on("an error reached nobody"):
            job.events.put(event)


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Log an error that nobody need hear of, and go on."""
    try:
        yield
    except Exception:
        log.exception(what)

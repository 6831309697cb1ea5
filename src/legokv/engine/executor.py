"""Runs jobs one step at a time: admits them, batches their next tokens, hands out the results.

Chunks a job needs and no tier has are compiled here, once, however many jobs wait for them.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from legokv.chunks.pool import ChunkCache, Grant, Resident
from legokv.chunks.tiers import LowerTiers
from legokv.engine.jobs import CompileJob, Compiling, Job, Turn
from legokv.engine.metrics import EngineMetrics
from legokv.engine.schedule import share
from legokv.engine.transfer import Transfer
from legokv.errors import Busy, LegokvError, PoolFull
from legokv.runners import Runner
from legokv.step.batch import step_batch
from legokv.step.sequence import chunk_sequence

log = logging.getLogger(__name__)


@dataclass
class Counters:
    """What happened since the start; each should only grow."""

    compiled_chunks: int = 0
    loaded_chunks: int = 0
    steps: int = 0


class Executor:
    """One caller at a time may `step`; `submit` and a job's `cancelled` are for any thread.

    An error of the runner or a tier ends the jobs it concerns with a LegokvError, gives back what
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
        dummy_token_id: int,
    ) -> None:
        self.counters = Counters()
        self.metrics = EngineMetrics()
        self._runner = runner
        self._cache = cache
        self._transfer = Transfer(runner, cache, tiers)
        self._max_step_tokens = max_step_tokens
        self._max_queue_requests = max_queue_requests
        self._dummy_token_id = dummy_token_id
        self._waiting: deque[Job] = deque()
        self._joining = threading.Lock()
        self._granted: list[Job] = []
        self._running: list[Job] = []
        self._compiling: dict[str, Compiling] = {}

    @property
    def num_running(self) -> int:
        """Jobs that hold pages. For any thread."""
        return len(self._granted) + len(self._running)

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for pages, or for stored chunks on their way. For any thread."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a job. PoolFull if it could not run even with the pool to itself, Busy if too many
        requests wait already; compiles, one for each document being registered, always may.
        """
        needed = self._cache.pages_needed(job.chunks, job.num_private_pages)
        if needed > self._runner.num_pages:
            raise PoolFull(
                f"the request needs {needed} pages of {self._runner.page_size} tokens, the pool "
                f"has {self._runner.num_pages}"
            )
        if isinstance(job, CompileJob):
            self._waiting.append(job)
            return
        with self._joining:
            num_waiting = sum(not isinstance(other, CompileJob) for other in list(self._waiting))
            if num_waiting >= self._max_queue_requests:
                raise Busy(
                    f"the queue is full: {num_waiting} waiting, max_queue_requests allows "
                    f"{self._max_queue_requests}; ask again later"
                )
            job.prefetch = self._transfer.prefetch(job.chunks)
            self._waiting.append(job)

    def step(self) -> bool:
        """Do one step's work; False if there was none."""
        self._drop_given_up()
        self._admit()
        self._start()
        turns = self._turns()
        if not turns:
            return bool(self._waiting or self._granted)
        logits = self._run(turns)
        if logits is None:
            return True
        self.counters.steps += 1
        for row, turn in zip(logits, turns, strict=True):
            turn.sequence.advance(turn.num_tokens, self.counters.steps)
            if not turn.sequence.num_left:
                self._computed(turn, row)
        return True

    def _run(self, turns: Sequence[Turn]) -> Tensor | None:
        """A row of logits for each turn; None if the step failed and its owners are ended."""
        try:
            batch = step_batch([turn.sequence.next(turn.num_tokens) for turn in turns])
            logits = self._runner.run(batch)
            if len(logits) != len(turns):
                raise LegokvError(f"{len(turns)} rows of logits are due, {len(logits)} came")
        except Exception as error:
            log.exception("a step failed")
            self._fail([turn.owner for turn in turns], error)
            return None
        return logits

    def drop(self, key: str) -> None:
        """Forget a chunk in every tier here; requests that hold it go on."""
        if key not in self._compiling:
            self._cache.drop(key)
        self._transfer.drop(key)

    def _drop_given_up(self) -> None:
        for job in [*self._waiting, *self._granted, *self._running]:
            error = job.given_up()
            if error is not None:
                self._end(job)
                job.events.put(error)

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
        """First come first served: a job that must wait for pages holds back those behind it."""
        admitted = True
        while admitted and self._waiting:
            with self._ending(self._waiting[0]):
                admitted = self._admitted(self._waiting[0])

    def _admitted(self, job: Job) -> bool:
        """Give the first job its pages, or end it; False if it must wait."""
        started = time.monotonic()
        if not self._is_fetched(job):
            return False
        if isinstance(job, CompileJob) and self._transfer.is_kept(job.chunks[0]):
            self._waiting.popleft()
            job.start(self._runner.copy_pages)
            return True
        try:
            job.grant = self._cache.grant(job.chunks, job.num_private_pages)
        except PoolFull as error:
            if self._granted or self._running or self._compiling:
                return False
            self._end(job)
            job.events.put(error)
            return True
        self._waiting.popleft()
        self._granted.append(job)
        self._fill_all(job.grant)
        self._transfer.used(job.chunks)
        self._close_prefetch(job)
        job.found(job.grant, time.monotonic() - started)
        return True

    def _is_fetched(self, job: Job) -> bool:
        """Whether the job's prefetch is over; waited for only if there is nothing to compute."""
        if job.prefetch is None or job.prefetch.done:
            return True
        if self._running or self._compiling:
            return False
        job.prefetch.wait()
        return True

    def _fill_all(self, grant: Grant) -> None:
        """Load each new resident's KV, or begin to compile it."""
        try:
            with _going_on("a chunk that left the pool was not kept"):
                self._transfer.keep_evicted(grant.evicted)
            for resident in grant.new:
                with _going_on("a chunk could not be loaded and is compiled again"):
                    self.counters.loaded_chunks += self._transfer.load(resident)
        finally:
            # Also after a Ctrl-C: a resident that nobody fills would be waited for without end.
            for resident in grant.new:
                if not resident.ready:
                    self._compile(resident)

    def _compile(self, resident: Resident) -> None:
        chunk = resident.chunk
        dummies = (self._dummy_token_id,) * chunk.dummy_tokens
        sequence = chunk_sequence(
            chunk.token_ids, resident.pages, self._runner.page_size, dummies, resident.dummy_pages
        )
        sequence.last_step = self.counters.steps
        self._cache.lease(resident)
        self._compiling[chunk.key] = Compiling(resident, sequence)

    def _start(self) -> None:
        for job in list(self._granted):
            assert job.grant is not None, "a granted job has its grant"
            if all(resident.ready for resident in job.grant.residents):
                with self._ending(job):
                    self._begin(job, job.grant)

    def _begin(self, job: Job, grant: Grant) -> None:
        if isinstance(job, CompileJob):
            self._transfer.store(grant.residents[0])
        if not job.start(self._runner.copy_pages):
            self._end(job)
            return
        for sequence in job.sequences:
            sequence.last_step = self.counters.steps
        self._granted.remove(job)
        self._running.append(job)

    def _turns(self) -> list[Turn]:
        """Who computes how much in the next step, the longest without a turn first."""
        owners: list[Job | Compiling] = [*self._running, *self._compiling.values()]
        work = [(sequence, owner) for owner in owners for sequence in owner.sequences]
        work.sort(key=lambda pair: pair[0].last_step)
        given = share([sequence.num_left for sequence, _ in work], self._max_step_tokens)
        return [Turn(o, s, tokens) for (s, o), tokens in zip(work, given, strict=True) if tokens]

    def _computed(self, turn: Turn, logits: Tensor) -> None:
        owner = turn.owner
        with self._ending(owner):
            if isinstance(owner, Compiling):
                self._compiled(owner)
            # Without a grant, another of its answers has ended it in this step.
            elif owner.grant is not None and owner.computed(turn.sequence, logits):
                self._end(owner)

    def _compiled(self, compiling: Compiling) -> None:
        resident = compiling.resident
        self._transfer.settle(resident)
        del self._compiling[resident.chunk.key]
        self._cache.mark_ready(resident)
        self.counters.compiled_chunks += 1
        self.metrics.compile.observe(time.monotonic() - compiling.started)
        # A CompileJob, whose promise it is, will try again and say that it could not.
        with _going_on("a compiled chunk was not stored"):
            self._transfer.store(resident)
        self._cache.end_lease(resident)

    @contextmanager
    def _ending(self, owner: Job | Compiling) -> Iterator[None]:
        """Whatever error leaves the block ends this owner, and those who wait for it."""
        try:
            yield
        except Exception as error:
            log.exception("a request failed")
            self._fail([owner], error)

    def _fail(self, owners: Sequence[Job | Compiling], error: Exception) -> None:
        lost = {id(o.resident) for o in owners if isinstance(o, Compiling)}
        # A job with several answers is there several times.
        failed = list(dict.fromkeys(owner for owner in owners if isinstance(owner, Job)))
        for job in self._granted:
            assert job.grant is not None, "a granted job has its grant"
            if any(id(resident) in lost for resident in job.grant.residents):
                failed.append(job)
        for owner in owners:
            if isinstance(owner, Compiling):
                del self._compiling[owner.resident.chunk.key]
                self._cache.drop(owner.resident.chunk.key)
                self._cache.end_lease(owner.resident)
        for job in failed:
            self._end(job)
            job.events.put(_failure(error))


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Log an error that nobody need hear of, and go on."""
    try:
        yield
    except Exception:
        log.exception(what)


def _failure(error: Exception) -> LegokvError:
    """What a request hears of an error, in one line; the log has it whole."""
    lines = str(error).strip().splitlines()
    return LegokvError(": ".join(["a step failed", type(error).__name__, *lines[:1]]))

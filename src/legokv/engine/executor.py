"""Runs jobs one step at a time: admits them, batches their next tokens, hands out the results.

Chunks a job needs and no tier has are compiled here, once, however many jobs wait for them.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from legokv.chunks.pool import ChunkCache, Grant, Resident
from legokv.chunks.tiers import LowerTiers
from legokv.engine.jobs import CompileJob, Job
from legokv.engine.metrics import EngineMetrics
from legokv.engine.schedule import share
from legokv.engine.transfer import Transfer
from legokv.errors import Busy, LegokvError, PoolFull
from legokv.runners import Runner
from legokv.step.batch import step_batch
from legokv.step.sequence import Sequence, chunk_sequence

log = logging.getLogger(__name__)


@dataclass
class Counters:
    """What happened since the start; each should only grow."""

    compiled_chunks: int = 0
    loaded_chunks: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Compiling:
    """A chunk on its way into the pool, its resident leased until it is there."""

    resident: Resident
    sequence: Sequence
    started: float = field(default_factory=time.monotonic)

    @property
    def sequences(self) -> tuple[Sequence]:
        return (self.sequence,)


class Executor:
    """One caller at a time may `step`; `submit` and a job's `cancelled` are for any thread."""

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
        sequences, owners = self._work()
        if not sequences:
            return bool(self._waiting or self._granted)
        given = share([sequence.num_left for sequence in sequences], self._max_step_tokens)
        chosen = [n for n, tokens in enumerate(given) if tokens]
        batch = step_batch([sequences[n].next(given[n]) for n in chosen])
        try:
            logits = self._runner.run(batch)
        except RuntimeError as error:
            # What torch raises when it runs out of memory; only this batch is lost.
            self._fail([owners[n] for n in chosen], LegokvError(f"a step failed: {error}"))
            return True
        self.counters.steps += 1
        for row, n in zip(logits, chosen, strict=True):
            sequences[n].advance(given[n], self.counters.steps)
            if not sequences[n].num_left:
                self._computed(owners[n], sequences[n], row)
        return True

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
        while self._waiting:
            job = self._waiting[0]
            started = time.monotonic()
            if not self._is_fetched(job):
                return
            if isinstance(job, CompileJob) and self._transfer.is_kept(job.chunks[0]):
                self._waiting.popleft()
                job.start(self._runner.copy_pages)
                continue
            try:
                job.grant = self._cache.grant(job.chunks, job.num_private_pages)
            except PoolFull as error:
                if self._granted or self._running or self._compiling:
                    return
                self._end(job)
                job.events.put(error)
                continue
            self._waiting.popleft()
            self._granted.append(job)
            self._fill_all(job.grant)
            self._transfer.used(job.chunks)
            self._close_prefetch(job)
            job.found(job.grant, time.monotonic() - started)

    def _is_fetched(self, job: Job) -> bool:
        """Whether the job's prefetch is over; waited for only if there is nothing to compute."""
        if job.prefetch is None or job.prefetch.done:
            return True
        if self._running or self._compiling:
            return False
        job.prefetch.wait()
        return True

    def _fill_all(self, grant: Grant) -> None:
        self._transfer.keep_evicted(grant.evicted)
        for resident in grant.new:
            self._fill(resident)

    def _fill(self, resident: Resident) -> None:
        """Load a new resident's KV, or begin to compile it."""
        chunk = resident.chunk
        if self._transfer.load(resident):
            self.counters.loaded_chunks += 1
            return
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
            if not all(resident.ready for resident in job.grant.residents):
                continue
            self._granted.remove(job)
            if isinstance(job, CompileJob):
                self._transfer.store(job.grant.residents[0])
            if job.start(self._runner.copy_pages):
                for sequence in job.sequences:
                    sequence.last_step = self.counters.steps
                self._running.append(job)
            else:
                self._end(job)

    def _work(self) -> tuple[list[Sequence], list["Job | Compiling"]]:
        """All there is to compute and for whom, the longest without a turn first."""
        owners: list[Job | Compiling] = [*self._running, *self._compiling.values()]
        work = [(sequence, owner) for owner in owners for sequence in owner.sequences]
        work.sort(key=lambda pair: pair[0].last_step)
        return [sequence for sequence, _ in work], [owner for _, owner in work]

    def _computed(self, owner: "Job | Compiling", sequence: Sequence, logits: Tensor) -> None:
        if isinstance(owner, Compiling):
            self._compiled(owner)
        elif owner.computed(sequence, logits):
            self._end(owner)

    def _compiled(self, compiling: Compiling) -> None:
        resident = compiling.resident
        del self._compiling[resident.chunk.key]
        self._transfer.settle(resident)
        self._cache.mark_ready(resident)
        self.counters.compiled_chunks += 1
        self.metrics.compile.observe(time.monotonic() - compiling.started)
        self._transfer.store(resident)
        self._cache.end_lease(resident)

    def _fail(self, owners: list["Job | Compiling"], error: LegokvError) -> None:
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
            job.events.put(error)
        log.error("%s", error)

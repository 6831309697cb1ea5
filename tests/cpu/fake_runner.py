"""An executor over a runner that keeps token ids in its pages, and fails where it is told to.

The next token is a sum over all that a sequence sees, so that one wrong page changes the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from legokv.chunks.budget import Budget
from legokv.chunks.chunk import Chunk
from legokv.chunks.host_tier import HostTier
from legokv.chunks.pool import ChunkCache, PagePool
from legokv.chunks.stored_kv import KvForm
from legokv.chunks.tiers import LowerTiers
from legokv.engine.answer import answers_to
from legokv.engine.chunk_jobs import CompileJob
from legokv.engine.executor import Executor
from legokv.engine.jobs import GenerateJob, Guide, Job
from legokv.engine.request import Finished, GenerateRequest, Token, Usage
from legokv.link.link import place
from legokv.step.batch import StepBatch

PAGE_SIZE = 4
VOCAB_SIZE = 97


@dataclass
class Fault:
    """What a runner's call raises, so many times, where `when` holds of its first argument."""

    call: str
    error: BaseException
    times: int = 1
    when: Callable[[Any], bool] = lambda argument: True


@dataclass
class FakeRunner:
    """A runner of one layer whose keys and values are the tokens' own ids."""

    num_pages: int
    page_size: int = PAGE_SIZE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    faults: list[Fault] = field(default_factory=list)
    batches: list[StepBatch] = field(default_factory=list)
    drawing: None = None

    def __post_init__(self) -> None:
        self.pool = torch.full((self.num_pages, self.page_size), -1.0)

    def run(self, batch: StepBatch) -> Tensor:
        self.batches.append(batch)
        self._fail("run", batch)
        self.pool.view(-1)[batch.slots.tolist()] = torch.tensor(batch.input_ids.tolist()).float()
        logits = torch.zeros(len(batch.pages), VOCAB_SIZE)
        for row, table in zip(logits, batch.pages.tolist(), strict=True):
            row[next_token(self._seen(table))] = 1.0
        return logits

    def _seen(self, table: list[list[int]]) -> list[int]:
        found = {
            first + slot: int(self.pool[page, slot])
            for page, _, first, filled in table
            for slot in range(filled)
        }
        return [found[position] for position in sorted(found)]

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._fail("copy_pages", sources)
        self.pool[list(targets)] = self.pool[list(sources)]

    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        self._fail("import_pages", pages)
        filled = torch.zeros(len(pages) * self.page_size)
        filled[: kv.shape[2]] = kv.flatten()[: kv.shape[2]]
        self.pool[list(pages)] = filled.view(len(pages), self.page_size)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        self._fail("export_pages", pages)
        ids = self.pool[list(pages)].flatten()[:num_tokens].clone()
        return ids.view(1, 1, -1, 1, 1).repeat(1, 2, 1, 1, 1)

    def _fail(self, call: str, argument: Any) -> None:
        for fault in self.faults:
            if fault.call == call and fault.times and fault.when(argument):
                fault.times -= 1
                raise fault.error


def next_token(ids: Sequence[int]) -> int:
    """The token after `ids`, never the end token 0."""
    return 1 + sum((place + 1) * token for place, token in enumerate(ids)) % (VOCAB_SIZE - 1)


def answer_to(ids: Sequence[int], num_tokens: int) -> list[int]:
    """The answer to a prompt, by the rule alone."""
    seen = list(ids)
    for _ in range(num_tokens):
        seen.append(next_token(seen))
    return seen[len(ids) :]


class DurableTier(HostTier):
    """A tier that is written when a chunk is compiled, as one on disk is."""

    name = "disk"
    durable = True


class World:
    """An executor, the runner, pool and tiers behind it, and jobs for it."""

    def __init__(self, num_pages: int = 32, max_step_tokens: int = 64, **given: Any) -> None:
        self.runner = FakeRunner(num_pages)
        self.cache = ChunkCache(PagePool(num_pages, PAGE_SIZE))
        self.host = HostTier(Budget(given.get("host_bytes", 0)))
        self.disk = DurableTier(Budget(given.get("disk_bytes", 0)))
        kept = [tier for tier in (self.host, self.disk) if tier.stats().max_bytes]
        form = KvForm(1, 1, 1, torch.float32)
        self.tiers = LowerTiers(kept, given.get("stored_dtype", "model"), form)
        self.executor = Executor(
            self.runner,
            self.cache,
            self.tiers,
            max_step_tokens=max_step_tokens,
            max_queue_requests=given.get("max_queue_requests", 100),
            max_kept_pages=given.get("max_kept_pages", 0),
        )

    @property
    def held(self) -> tuple[int, int, int, int]:
        """Pages in use but for chunks nobody leases, leases, and jobs that run and that wait."""
        idle = sum(len(r.pages) for r in self.cache.residents if r.ready and not r.leases)
        executor = self.executor
        used = self.cache.pool.num_used - idle
        return used, self.cache.num_leases, executor.num_running, executor.num_waiting

    def ask(
        self,
        *segments: Chunk | Sequence[int],
        max_tokens: int = 3,
        guide: Guide | None = None,
        **options: Any,
    ) -> Job:
        """Queue a request."""
        options = {"link_tokens": 2, **options}
        request = GenerateRequest(segments, max_tokens, **options)
        placement = place(segments, PAGE_SIZE, max(max_tokens - 1, 0))
        answers = answers_to(request, lambda ids: "".join(map(chr, ids)), (0,))
        return self.queue(GenerateJob(request, placement, answers, self.executor.metrics, guide))

    def compile(self, chunk: Chunk) -> Job:
        """Queue a chunk to be compiled and kept."""
        return self.queue(CompileJob(chunk))

    def queue(self, job: Job) -> Job:
        self.executor.submit(job)
        return job

    def finish(self, most_steps: int = 300) -> None:
        """Step until nothing is left to do."""
        for _ in range(most_steps):
            if not self.executor.step():
                return
        raise AssertionError(f"not done after {most_steps} steps")

    def answer(self, *segments: Chunk | Sequence[int], max_tokens: int = 3) -> list[int]:
        """The answer to one request, all that is queued being computed."""
        job = self.ask(*segments, max_tokens=max_tokens)
        self.finish()
        return tokens(job)


def chunk(number: int, num_tokens: int = 10, *, persistent: bool = True) -> Chunk:
    """A chunk of tokens that all others lack."""
    ids = tuple(100 * number + place for place in range(num_tokens))
    return Chunk(f"key {number}", "default", ids, persistent=persistent)


def events(job: Job) -> list[Any]:
    """What happened to a job since it was last asked."""
    found = []
    while not job.queue.empty():
        found.append(job.queue.get())
    return found


def answered(job: Job) -> tuple[list[int], Usage]:
    """The tokens of a job that is over, and what it took."""
    *drawn, last = events(job)
    assert isinstance(last, Finished), last
    return [event.id for event in drawn], last.usage


def tokens(job: Job) -> list[int]:
    """The ids of the tokens drawn for a job that is over."""
    *drawn, last = events(job)
    if isinstance(last, Exception):
        raise last
    return [event.id for event in drawn if isinstance(event, Token)]

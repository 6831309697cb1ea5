"""The library's front door: an engine folder opened, chunks compiled, prompts answered."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from legokv.answer import answers_to
from legokv.batch import Int32
from legokv.chunks.cache import ChunkCache
from legokv.chunks.chunk import Chunk
from legokv.chunks.header import token_bytes
from legokv.chunks.key import chunk_key, kv_dtype_name
from legokv.chunks.limits import DISK_BYTES, HOST_BYTES, REMOTE_BYTES, TierLimits
from legokv.chunks.lower_tiers import LowerTiers
from legokv.chunks.opening import open_tiers
from legokv.chunks.stats import TierStats
from legokv.chunks.stored_kv import check_stored_dtype
from legokv.documents.document import DEFAULT_NAMESPACE
from legokv.engine_folder import EngineFacts, read_engine_folder
from legokv.engine_metrics import PAGES_USED, RUNNING, WAITING, tier_samples
from legokv.errors import InvalidRequest, LegokvError
from legokv.executor import Executor
from legokv.fleet.address import NO_REDIS, shared_cache
from legokv.jobs import CompileJob, Event, GenerateJob, Job, Prefill
from legokv.link import Segment, link, segment_len
from legokv.metrics import Sample
from legokv.pages import PagePool
from legokv.request import (
    DUMMY_TOKENS,
    LINK_TOKENS,
    Finished,
    GenerateRequest,
    Token,
    check_context,
    check_token_ids,
)
from legokv.runners import Runner
from legokv.runners.open_runner import RunnerSettings, open_runner
from legokv.sample import SamplingOptions
from legokv.tokenizer import Tokenizer

_DTYPES = ("bfloat16", "float16", "float32")

log = logging.getLogger(__name__)


class Engine:
    """A model with its page pool and the chunks in it. Safe to call from several threads.

    Whoever waits for a result runs the steps that produce it, everybody's work included; a server
    instead calls `submit` from any thread and `step` from one.
    """

    def __init__(
        self,
        facts: EngineFacts,
        tokenizer: Tokenizer,
        runner: Runner,
        executor: Executor,
        cache: ChunkCache,
        tiers: LowerTiers,
    ) -> None:
        self.facts = facts
        self.tokenizer = tokenizer
        self.cache = cache
        self.tiers = tiers
        self.executor = executor
        self.runner = runner
        self._stepping = threading.Lock()

    @classmethod
    def open(  # noqa: PLR0913 - each is a setting of its own, all with a default
        cls,
        path: str | Path,
        *,
        dtype: str | None = None,
        pool_tokens: int = 32768,
        max_step_tokens: int = 2048,
        max_queue_requests: int = 1024,
        num_threads: int | None = None,
        cache_dir: str | Path | None = None,
        runner: str = "auto",
        attention: str = "auto",
        host_bytes: int = HOST_BYTES,
        disk_bytes: int = DISK_BYTES,
        namespace_bytes: int = 0,
        kv_stored_dtype: str = "model",
        high_watermark: float = 1.0,
        low_watermark: float = 0.9,
        redis_url: str = NO_REDIS,
        remote_bytes: int = REMOTE_BYTES,
        pinned_keys: Callable[[], Collection[str]] = frozenset,
    ) -> "Engine":
        """Load the engine folder at `path`; EngineMismatch if it does not fit this version.

        dtype: "bfloat16" or "float32" in place of the one it was built for. pool_tokens: how many
        tokens' KV the pool holds. max_step_tokens: most tokens one step computes.
        max_queue_requests: most requests that wait for a step or pages, Busy for more. num_threads:
        torch's, for this whole process. cache_dir: where persistent chunks are kept, below a
        folder named by the model's fingerprint. runner: "torch" on the CPU, "cuda", "plan", or
        "auto" by what this machine has (see `open_runner`). attention, of the CPU: "native", its
        library, compiled if it is not yet; "torch"; or "auto", native if it is there. host_bytes,
        disk_bytes: most KV kept in memory and in cache_dir, 0 for none; namespace_bytes: most on
        disk of one namespace, 0 for any. kv_stored_dtype: "model", or "int8" with scales at half
        the bytes, to which KV is rounded once. redis_url: a Redis that several servers share, with
        remote_bytes at most. Past high_watermark of these and of the pool, chunks leave down to
        low_watermark. pinned_keys: chunks that are not evicted.
        """
        facts = read_engine_folder(Path(path))
        if facts.gate is not None and not facts.gate.passed:
            log.warning("%s is not linked correctly: %s", path, facts.gate)
        dtype = dtype or facts.dtype
        if dtype not in _DTYPES:
            raise InvalidRequest(f"dtype is one of {', '.join(_DTYPES)}, not '{dtype}'")
        if pool_tokens < facts.page_size or max_step_tokens < 1:
            raise InvalidRequest(
                f"pool_tokens is at least one page of {facts.page_size}, max_step_tokens at least "
                f"1, not {pool_tokens} and {max_step_tokens}"
            )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        num_pages = pool_tokens // facts.page_size
        opened = RunnerSettings(runner, attention, dtype, num_pages, max_step_tokens)
        model_runner = open_runner(Path(path), facts, opened)
        facts = replace(facts, dtype=dtype)
        marks = (high_watermark, low_watermark)
        cache = ChunkCache(PagePool(num_pages, facts.page_size), pinned_keys, *marks)
        root = None if cache_dir is None else cache_root(Path(cache_dir), facts)
        limits = TierLimits(host_bytes, disk_bytes, namespace_bytes, *marks, remote_bytes)
        shared = shared_cache(redis_url, facts.fingerprint)
        stored_dtype = check_stored_dtype(kv_stored_dtype)
        tiers = open_tiers(
            root,
            limits,
            pinned_keys,
            pin_memory=model_runner.device.type == "cuda",
            shared=shared,
            stored_dtype=stored_dtype,
        )
        executor = Executor(
            model_runner,
            cache,
            tiers,
            max_step_tokens=max_step_tokens,
            max_queue_requests=max_queue_requests,
            dummy_token_id=_dummy_token_id(facts),
        )
        return cls(facts, Tokenizer.open(Path(path)), model_runner, executor, cache, tiers)

    def chunk(
        self,
        token_ids: Sequence[int] | Int32,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        persistent: bool = True,
    ) -> Chunk:
        """Name a chunk without compiling it; a request that uses it does that when it must."""
        check_token_ids(token_ids, self.facts.model)
        ids = tuple(np.asarray(token_ids, np.int32).tolist())
        if not ids:
            raise InvalidRequest("a chunk has 0 tokens; it needs at least one")
        check_context(len(ids), 0, self.facts.model)
        return Chunk(self._key(ids, namespace, 0), namespace, ids, persistent=persistent)

    def compile(
        self,
        token_ids: Sequence[int] | Int32,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        persistent: bool = True,
    ) -> Chunk:
        """Compile `token_ids` alone from position 0 and keep the KV, unless it is kept already.

        PoolFull if the chunk does not fit into the pool.
        """
        chunk = self.chunk(token_ids, namespace, persistent=persistent)
        job = self.submit_compile(chunk)
        for _ in self.results(job):
            pass
        return chunk

    def prefill(
        self,
        segments: Sequence[Segment],
        *,
        link_tokens: int = LINK_TOKENS,
        mode: str = "legolink",
    ) -> Prefill:
        """Link `segments` (chunks and token ids, in prompt order): logits of the next token."""
        job = self.submit(GenerateRequest(segments, 0, mode, link_tokens))
        result = next(self.results(job))
        assert isinstance(result, Prefill), "a request for 0 tokens ends with its logits"
        return result

    def generate(
        self,
        segments: Sequence[Segment],
        *,
        max_tokens: int,
        link_tokens: int = LINK_TOKENS,
        mode: str = "legolink",
        sampling: SamplingOptions | None = None,
        stop_words: Sequence[str] = (),
    ) -> Iterator[Token]:
        """Answer the prompt token by token; the last has a finish_reason, "stop" or "length".

        Closing the iterator cancels the request.
        """
        if max_tokens < 1:
            raise InvalidRequest(f"max_tokens is 1 or more, not {max_tokens}")
        request = GenerateRequest(
            segments,
            max_tokens,
            mode,
            link_tokens,
            sampling or SamplingOptions(),
            tuple(stop_words),
        )
        return self.answer(request)

    def answer(self, request: GenerateRequest) -> Iterator[Token]:
        """The tokens of all answers to a request as they are drawn, told apart by their
        sequence_index; closing the iterator cancels the request.
        """
        return self._tokens(self.submit(request))

    def submit(self, request: GenerateRequest) -> GenerateJob:
        """Queue a request; what it can never have is refused here, the rest comes as events."""
        submitted_at = time.monotonic()
        for segment in request.segments:
            check_token_ids(segment, self.facts.model)
        # Before linking, which lists a page for every token there may be.
        prompt_tokens = sum(map(segment_len, request.segments))
        check_context(prompt_tokens, request.max_tokens, self.facts.model)
        segments = self._variants(request)
        reserve = max(request.max_tokens - 1, 0)
        linked = link(segments, request.policy, self.facts.page_size, reserve)
        answers = answers_to(request, self.tokenizer.decode, self.facts.model.eos_token_ids)
        job = GenerateJob(request, linked, answers, self.facts.page_size, self.executor.metrics)
        job.submitted_at = submitted_at
        self.executor.submit(job)
        return job

    def submit_compile(self, chunk: Chunk) -> CompileJob:
        """Queue a chunk to be compiled and kept; ends with a Finished."""
        job = CompileJob(chunk)
        self.executor.submit(job)
        return job

    def cancel(self, job: Job) -> None:
        """End a job at the next step; its events end with a Cancelled unless it was over."""
        job.cancelled = True

    def step(self) -> bool:
        """Compute one step of whatever is queued; False if nothing was."""
        with self._stepping:
            return self.executor.step()

    def cache_stats(self) -> tuple[TierStats, ...]:
        """The state of the pool and of each tier below it. For any thread; takes no lock."""
        page_bytes = self.facts.page_size * token_bytes(self.facts.model, self.facts.dtype, "model")
        return (self.cache.stats(page_bytes), *self.tiers.stats())

    def samples(self) -> Iterator[Sample]:
        """All that is published about the engine. For any thread; takes no lock of the steps."""
        yield from self.executor.metrics.samples()
        yield from tier_samples(self.cache_stats())
        for times in self.tiers.load_times.values():
            yield from times.samples()
        yield Sample(PAGES_USED, (), self.cache.pool.num_used)
        yield Sample(RUNNING, (), self.executor.num_running)
        yield Sample(WAITING, (), self.executor.num_waiting)

    def drop(self, key: str) -> None:
        """Forget a chunk's KV in pool and on disk; requests that use it now are not disturbed."""
        with self._stepping:
            self.executor.drop(key)

    def _variants(self, request: GenerateRequest) -> list[Segment]:
        """The segments, for LegoLink-0 with chunks compiled behind dummies but at the start."""
        if request.mode != "legolink-0":
            return list(request.segments)
        return [
            self._behind_dummies(segment) if number and isinstance(segment, Chunk) else segment
            for number, segment in enumerate(request.segments)
        ]

    def _behind_dummies(self, chunk: Chunk) -> Chunk:
        key = self._key(chunk.token_ids, chunk.namespace, DUMMY_TOKENS)
        return replace(chunk, key=key, dummy_tokens=DUMMY_TOKENS, persistent=False)

    def _key(self, token_ids: tuple[int, ...], namespace: str, dummy_tokens: int) -> str:
        dtype = kv_dtype_name(self.facts.dtype, self.tiers.stored_dtype)
        return chunk_key(self.facts.fingerprint, dtype, namespace, token_ids, dummy_tokens)

    def _tokens(self, job: GenerateJob) -> Iterator[Token]:
        try:
            for event in self.results(job):
                if isinstance(event, Token):
                    yield event
        finally:
            self.cancel(job)

    def results(self, job: Job) -> Iterator[Event]:
        """A job's events as they come, this thread stepping meanwhile; raises its error."""
        while True:
            with self._stepping:
                while job.events.empty():
                    busy = self.executor.step()
                    assert busy or not job.events.empty(), "a queued job leaves nothing to do"
            event = job.events.get()
            if isinstance(event, LegokvError):
                raise event
            yield event
            if isinstance(event, Finished | Prefill):
                return


def cache_root(cache_dir: Path, facts: EngineFacts) -> Path:
    """Where the registry and the chunk files of an engine's model lie below a cache folder."""
    return cache_dir / facts.fingerprint[:16]


def _dummy_token_id(facts: EngineFacts) -> int:
    """LegoLink-0's dummy: the beginning of text where the model has one, else an end."""
    model = facts.model
    return next(t for t in (model.bos_token_id, *model.eos_token_ids, 0) if t is not None)

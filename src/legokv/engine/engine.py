"""The library's front door: an engine folder opened, chunks compiled, prompts answered."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from legokv.built.settings import EngineSettings
from legokv.chunks.chunk import Chunk
from legokv.chunks.header import token_bytes
from legokv.chunks.stats import TierStats
from legokv.documents.document import DEFAULT_NAMESPACE
from legokv.engine.answer import answers_to
from legokv.engine.chunk_jobs import ChunkJob, CompileJob
from legokv.engine.jobs import EventSink, GenerateJob, Guide, Job, JobEvent, Prefill
from legokv.engine.metrics import PAGES_USED, RUNNING, WAITING, tier_samples
from legokv.engine.naming import ChunkNaming
from legokv.engine.option_checks import check_texts, check_whole
from legokv.engine.parts import EngineParts, open_parts
from legokv.engine.ranking import FOREIGN_TEXT, FOREIGN_TOKENS, RankJob
from legokv.engine.request import (
    MODES_BY_ATTENTION,
    MODES_WITH_DRIFT,
    AnswerOptions,
    Finished,
    GenerateRequest,
    Token,
    check_biased_ids,
    check_prompt,
    check_stop_token_ids,
)
from legokv.engine.sampling import SamplingOptions
from legokv.errors import InvalidRequest, LegokvError
from legokv.link.link import Segment, place
from legokv.metrics import Sample
from legokv.model.dtypes import Int32
from legokv.stores.tiers import PinnedKeys
from legokv.text.answer_format import format_text
from legokv.text.grammar import Grammars


class Engine:
    """A model with its page pool and the chunks in it. Safe to call from several threads.

    Whoever waits for a result runs the steps that produce it, everybody's work included; a server
    instead calls `submit` from any thread and `step` from one.

    A prompt is a sequence of segments: chunks, and token ids that are computed for it alone.
    Every method raises InvalidRequest for what can never be, PoolFull for what the whole pool is
    too small for, and Busy while `max_queue_requests` wait.

    >>> import legokv
    >>> engine = legokv.Engine.open("out/engines/llama")
    >>> encode = engine.tokenizer.encode
    >>> ferry = engine.compile(encode("The ferry leaves at seven."))
    >>> bakery = engine.compile(encode("The bakery opens at five."))
    >>> question = encode("When does the ferry leave?")
    >>> result = engine.prefill([bakery, ferry, question], link_tokens=4)
    >>> result.recomputed_tokens, result.fresh_tokens == len(question)
    (4, True)
    >>> tokens = list(engine.generate([ferry, bakery, question], max_tokens=12))
    >>> text = "".join(token.text for token in tokens)
    """

    def __init__(self, parts: EngineParts) -> None:
        self.facts = parts.facts
        self.tokenizer = parts.tokenizer
        self.cache = parts.cache
        self.tiers = parts.tiers
        self.executor = parts.executor
        self.runner = parts.runner
        model = parts.facts.model
        self._grammars = Grammars(parts.tokenizer, model.vocab_size, model.eos_token_ids)
        self._naming = ChunkNaming(parts.facts, parts.tiers.stored_dtype)
        self._stepping = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        settings: EngineSettings | None = None,
        pinned_keys: PinnedKeys = frozenset,
        write_behind: bool = False,
    ) -> "Engine":
        """Load an engine folder.

        path: what `build_engine_folder` made.
        settings: type, threads, sizes in tokens and bytes, tiers; None for the defaults.
        pinned_keys: called when room is made; the chunks of these keys are not evicted.
        write_behind: threads of their own write to disk and to Redis, and nobody waits for them
            but `tiers.flush`. For a server, whose one thread that steps must not.

        EngineMismatch if the folder does not fit this version or its runner this machine;
        InvalidRequest for settings that this engine can't have, with the numbers.

        >>> import legokv
        >>> settings = legokv.EngineSettings(pool_tokens=4096, host_bytes=2**28)
        >>> engine = legokv.Engine.open("out/engines/llama", settings=settings)
        >>> [stats.tier for stats in engine.cache_stats()]
        ['pool', 'host']
        """
        return cls(open_parts(Path(path), settings or EngineSettings(), pinned_keys, write_behind))

    def chunk(
        self,
        token_ids: Sequence[int] | Int32,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        behind: Segment = (),
        persistent: bool = True,
    ) -> Chunk:
        """Name a chunk without compiling it; a request that uses it does that when it must.

        token_ids: at least one, at most the model's context. namespace: only who names the same
        one meets the chunk. persistent: also kept on disk and in Redis. behind: what it is
        compiled behind, a chunk or token ids; without any it is compiled alone.

        >>> import legokv
        >>> engine = legokv.Engine.open("out/engines/llama")
        >>> head = engine.tokenizer.encode("Answer from the documents.")
        >>> first = engine.chunk([5, 6, 7], behind=head)
        >>> second = engine.chunk([8, 9], behind=first)
        >>> second.start - len(head)
        3
        """
        before = None
        if isinstance(behind, Chunk):
            before = behind
        elif len(behind):
            before = self._naming.chunk(behind, namespace, persistent=persistent)
        return self._naming.chunk(token_ids, namespace, behind=before, persistent=persistent)

    def compile(
        self,
        token_ids: Sequence[int] | Int32,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        behind: Segment = (),
        persistent: bool = True,
        rank: bool = False,
    ) -> Chunk:
        """Compile `token_ids` alone or `behind` others, and keep the KV, unless it is kept already.

        The arguments are those of `chunk`, and `rank` to have it ranked as by `rank`. What it is
        compiled behind is kept as a chunk of its own. PoolFull if both together do not fit into
        the pool.
        """
        chunk = self.chunk(token_ids, namespace, behind=behind, persistent=persistent)
        job = self.submit_compile(chunk)
        for _ in self.results(job):
            pass
        if rank:
            self.rank(chunk)
        return chunk

    def rank(self, chunk: Chunk) -> None:
        """Rank a chunk's tokens, unless they are: for modes "ranked" and "guided-ranked".

        It is computed a second time, behind foreign text; what no tier has is compiled first. The
        ranking is kept with the KV, one number a token. PoolFull if the pool has no room for both.

        >>> import legokv
        >>> engine = legokv.Engine.open("out/engines/llama")
        >>> first, second = engine.compile([5, 6, 7, 8]), engine.compile([9, 10, 11, 12])
        >>> engine.rank(second)
        >>> engine.prefill([first, second, [13]], mode="ranked", link_tokens=2).recomputed_tokens
        2
        """
        for _ in self.results(self.submit_rank(chunk)):
            pass

    def prefill(
        self,
        segments: Sequence[Segment],
        *,
        link_tokens: int | None = None,
        mode: str = "legolink",
        recompute_percent: float | None = None,
    ) -> Prefill:
        """Link a prompt: the next token's logits, float32 [V], and how many tokens were reused.

        segments: chunks and token ids, in prompt order. link_tokens, mode, recompute_percent: see
        `GenerateRequest`.
        """
        request = GenerateRequest(
            segments, 0, mode, link_tokens, recompute_percent=recompute_percent
        )
        job = self.submit(request)
        result = next(self.results(job))
        assert isinstance(result, Prefill), "a request for 0 tokens ends with its logits"
        return result

    def generate(  # noqa: PLR0913 - one call names all that a caller may choose
        self,
        segments: Sequence[Segment],
        *,
        max_tokens: int,
        link_tokens: int | None = None,
        mode: str = "legolink",
        recompute_percent: float | None = None,
        sampling: SamplingOptions | None = None,
        stop_words: Sequence[str] = (),
        response_format: str | Mapping[str, Any] | None = None,
    ) -> Iterator[Token]:
        """Answer the prompt token by token; the last has a finish_reason, "stop" or "length".

        segments: chunks and token ids, in prompt order. max_tokens: 1 or more. sampling: None for
        greedy. link_tokens, mode, recompute_percent, stop_words: see `GenerateRequest`.
        response_format: what the answer is to be, as `{"type": "json_object"}`, an object or its
        JSON; see `AnswerOptions`. Closing the iterator cancels the request.
        """
        check_whole("max_tokens", max_tokens, 1)
        check_texts("stop_words", stop_words)
        request = GenerateRequest(
            segments,
            max_tokens,
            mode,
            link_tokens,
            sampling or SamplingOptions(),
            tuple(stop_words),
            AnswerOptions(response_format=format_text(response_format)),
            recompute_percent=recompute_percent,
        )
        return self.answer(request)

    def answer(self, request: GenerateRequest) -> Iterator[Token]:
        """The tokens of all answers to `request` as they are drawn, told apart by their
        sequence_index; closing the iterator cancels the request.
        """
        return self._tokens(self.submit(request))

    def submit(
        self,
        request: GenerateRequest,
        events: EventSink | None = None,
        guide: Guide | None = None,
    ) -> GenerateJob:
        """Queue a request; what it can never have is refused here, the rest comes as events.

        They go to the job's own queue, or to `events` from the thread that steps. A `guide`
        chooses what is recomputed, in place of the request's mode.
        """
        submitted_at = time.monotonic()
        # Before linking, which lists a page for every token there may be.
        check_prompt(request.segments, request.max_tokens, self.facts.model)
        check_stop_token_ids(request.answering.stop_token_ids, self.facts.model)
        check_biased_ids(request.sampling.logit_bias, self.facts.model)
        self.check_mode(request.mode)
        segments = self._naming.segments(request)
        reserve = max(request.max_tokens - 1, 0)
        placement = place(segments, self.facts.page_size, reserve)
        eos_token_ids = self.facts.model.eos_token_ids
        answers = answers_to(request, self.tokenizer, eos_token_ids, self._grammars)
        job = GenerateJob(request, placement, answers, self.executor.metrics, guide, events)
        job.submitted_at = submitted_at
        self.executor.submit(job)
        return job

    def check_mode(self, mode: str, named: str = "mode") -> None:
        """InvalidRequest, with the next step, for a mode in which the runner can't answer.

        named: what asks for it, a request's field or a setting.
        """
        reason = self.runner.no_attention
        if mode in MODES_BY_ATTENTION and reason is not None:
            raise InvalidRequest(f"{named} '{mode}' asks what the question attends to, {reason}")
        if mode in MODES_WITH_DRIFT and not self.runner.gives_drift:
            raise InvalidRequest(
                f"{named} '{mode}' moves stored keys and values, which an engine's plan does not: "
                f"take mode '{mode.removesuffix('-drift')}', or open it with runner 'cuda', or "
                "'torch' on a CPU"
            )

    def submit_compile(self, chunk: Chunk) -> CompileJob:
        """Queue a chunk to be compiled and kept; ends with a Finished.

        It is kept when the tiers are flushed then.
        """
        job = CompileJob(chunk)
        self.executor.submit(job)
        return job

    def submit_rank(self, chunk: Chunk) -> RankJob:
        """Queue a chunk to be ranked; ends with a Finished. Kept when the tiers are flushed."""
        foreign = self.tokenizer.encode(FOREIGN_TEXT)[:FOREIGN_TOKENS]
        job = RankJob(chunk, foreign, self.facts.model, self.facts.page_size)
        self.executor.submit(job)
        return job

    def warm(self, chunk: Chunk, tier: str) -> ChunkJob | None:
        """Queue a job that gets a chunk into the pool; None if it is warm enough without one.

        Warm enough is in `tier` ("pool" or a lower tier's name) or in a faster one: a slower one
        is read here. What no tier has is compiled.
        """
        resident = self.cache.find(chunk.key)
        if resident is not None and resident.ready:
            return None
        if tier != "pool" and self.tiers.fetch_into(tier, chunk):
            return None
        job = ChunkJob(chunk)
        self.executor.submit(job)
        return job

    def tier_of(self, key: str) -> str:
        """The fastest tier that has the chunk, "" if none has. For any thread."""
        resident = self.cache.find(key)
        return "pool" if resident is not None and resident.ready else self.tiers.tier_of(key)

    def cancel(self, job: Job) -> None:
        """End a job at the next step; its events end with a Cancelled unless it was over."""
        job.cancelled = True

    def step(self) -> bool:
        """Compute one step of whatever is queued; False if nothing was."""
        with self._stepping:
            return self.executor.step()

    @property
    def lost(self) -> LegokvError | None:
        """Why nothing can be computed any more in this process; None while it can."""
        return self.runner.lost

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
        """Forget a chunk's KV in pool and on disk; requests that use it now are not disturbed.

        It is gone when the tiers are flushed then.
        """
        with self._stepping:
            self.executor.drop(key)

    def _tokens(self, job: GenerateJob) -> Iterator[Token]:
        try:
            for event in self.results(job):
                if isinstance(event, Token):
                    yield event
        finally:
            self.cancel(job)

    def results(self, job: Job) -> Iterator[JobEvent]:
        """A job's events as they come, this thread stepping meanwhile; raises its error."""
        while True:
            with self._stepping:
                while job.queue.empty():
                    busy = self.executor.step()
                    assert busy or not job.queue.empty(), "a queued job leaves nothing to do"
            event = job.queue.get()
            if isinstance(event, LegokvError):
                raise event
            yield event
            if isinstance(event, Finished | Prefill):
                return

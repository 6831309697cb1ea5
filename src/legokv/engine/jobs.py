"""What the executor works on for its callers, and the answering of a prompt."""

import math
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.chunks.pool import ChunkCache, Grant, Resident
from legokv.chunks.prefetch import Prefetch
from legokv.chunks.stored_kv import StoredKv
from legokv.engine.answer import Answer
from legokv.engine.draw import Drawn, check_finite
from legokv.engine.kept import KeptSequences, OwnSequence, copies_behind, own_sequence
from legokv.engine.metrics import EngineMetrics
from legokv.engine.request import (
    MODES_BY_ATTENTION,
    MODES_BY_RANKING,
    Finished,
    GenerateRequest,
    Token,
    Usage,
)
from legokv.engine.sampling import Draw
from legokv.engine.transfer import Transfer
from legokv.errors import Cancelled, LegokvError, PoolFull, TimedOut, exact
from legokv.link.link import Placement, bind
from legokv.link.policy import Policy, Scores
from legokv.step.sequence import TokenSequence, linked_sequence
from legokv.step.tails import Tail, num_own_pages, tails_behind


@dataclass(frozen=True)
class Prefill:
    """The next token's logits, float32 [V], and how many tokens were reused for them."""

    logits: Tensor
    usage: Usage

    @property
    def cached_tokens(self) -> int:
        return self.usage.cached_tokens

    @property
    def recomputed_tokens(self) -> int:
        return self.usage.recomputed_tokens

    @property
    def fresh_tokens(self) -> int:
        return self.usage.fresh_tokens


JobEvent = Token | Prefill | Finished | LegokvError


class Wait(StrEnum):
    """What a job without pages waits for, as the executor notes it."""

    IN_A_STEP = "a step of other requests was under way"
    IN_LINE = "it waited in line behind others"
    FOR_PAGES = "it waited for pages"
    FOR_A_TIER = "its documents were read from disk or network"


class EventSink(Protocol):
    """Where a job's events go, in order; called by the thread that computes, so it never waits."""

    def put(self, event: JobEvent) -> None: ...


class Job:
    """Work a caller waits for: its `events` end with a Finished, a Prefill or an error.

    The executor admits it when there are pages, starts it when its chunks are in the pool, and
    hands it the logits of its `sequences` until it is over. A job that `waits_in_line` counts
    against the queue's limit. One that `is_to_store` wants its chunks kept, also dropped ones. One
    that is `filling` a resident computes that chunk for others. A job that was `cancelled`, or has
    not begun to answer `patience_seconds` after it was submitted, is given up before its next step.
    It draws at most `max_new_tokens` an answer.
    """

    waits_in_line = True
    is_to_store = False
    filling: Resident | None = None
    needs_all_before = False
    """Whether a chunk of it that a tier has must still be compiled, behind what stood before it."""
    patience_seconds = math.inf
    max_new_tokens = 0

    def __init__(
        self, chunks: tuple[Chunk, ...], num_private_pages: int, events: EventSink | None = None
    ) -> None:
        self.chunks = chunks
        self.num_private_pages = num_private_pages
        self.queue: queue.SimpleQueue[JobEvent] = queue.SimpleQueue()
        self.events: EventSink = self.queue if events is None else events
        self.cancelled = False
        self.submitted_at = time.monotonic()
        self.prefetch: Prefetch | None = None
        self.has_fetched = False
        self.grant: Grant | None = None
        # What the executor notes: pages it may hold at once, the chunks that it asked pages for
        # last, with what stands before those to be compiled, that it has passed another, and what
        # it waits for.
        self.num_pages = 0
        self.asked_chunks = chunks
        self.has_passed = False
        self.waits_for = Wait.IN_A_STEP
        self.sequences: Sequence[TokenSequence] = ()

    @property
    def is_fetched(self) -> bool:
        """Whether no stored chunk of its is on its way any more."""
        return self.prefetch is None or self.prefetch.done

    def kept(self) -> None:
        """All chunks of a job that `is_to_store` are kept already: say that it is over."""

    @property
    def held(self) -> Mapping[str, StoredKv]:
        """What was read of its chunks and what stood before them, by key."""
        return {} if self.prefetch is None else self.prefetch.held

    def admitted(self, grant: Grant, load_seconds: float) -> None:
        """Pages were granted; `grant.new` is what no tier had and is being compiled."""
        self.grant = grant

    @property
    def is_ready(self) -> bool:
        """Whether all that it reads is in the pool."""
        assert self.grant is not None, "a job waits for chunks while it holds their pages"
        return all(resident.ready or resident is self.filling for resident in self.grant.residents)

    def start(self, transfer: Transfer) -> bool:
        """All chunks are in the pool: make `sequences`, or False if there is nothing to compute."""
        raise NotImplementedError

    def draws(self, sequence: TokenSequence, row: int) -> Sequence[Draw]:
        """What is to be drawn of row `row` of a step's logits, once all of `sequence` is computed.

        Nothing of the job changes by it but its random numbers.
        """
        return ()

    def computed(self, sequence: TokenSequence, logits: Tensor, drawn: Sequence[Drawn]) -> bool:
        """All of `sequence` is computed, `logits` [V] its last: True if the job is over.

        `drawn` has a token for each of its `draws`, or why there is none.
        """
        raise NotImplementedError

    def given_up(self) -> LegokvError:
        """The error that ends the job when it is given up."""
        return Cancelled("the request was cancelled")

    def holds(self, resident: Resident) -> bool:
        """By identity: two residents are never the same for having the same fields."""
        return self.grant is not None and any(held is resident for held in self.grant.residents)

    def sequence(self) -> OwnSequence | None:
        """What it computes for itself, as far as it is computed; None if none may go on from it."""
        return None

    def reuse(self, num_positions: int) -> None:
        """All before this position will be in its granted pages: compute what comes behind."""


def granted(job: Job, chunks: Sequence[Chunk], cache: ChunkCache, kept: KeptSequences) -> Grant:
    """Pages for a job, an ended request's among them where it can go on from these.

    PoolFull, and nothing taken, if there are too few also without them.
    """
    shared = kept.shared_with(job.sequence())
    if shared is not None:
        with suppress(PoolFull):
            grant = cache.grant(chunks, job.num_private_pages, shared.reused)
            job.reuse(shared.num_positions)
            kept.used(shared)
            return grant
    job.reuse(0)
    return cache.grant(chunks, job.num_private_pages)


@dataclass(frozen=True)
class Guide:
    """A caller's own policy, and what gives its scores once the first pass is computed."""

    policy: Policy
    scores: Callable[[], Scores]


class GenerateJob(Job):
    """Link a prompt, then draw tokens until all answers to it have ended.

    A guide's policy that needs scores chooses after a first pass over the granted pages. Until it
    has chosen, the job holds pages for whatever it may choose.
    """

    def __init__(
        self,
        request: GenerateRequest,
        placement: Placement,
        answers: Sequence[Answer],
        metrics: EngineMetrics,
        guide: Guide | None = None,
        events: EventSink | None = None,
    ) -> None:
        policy = request.policy if guide is None else guide.policy
        link = placement.first_pass() if policy.needs_scores else placement.link(policy)
        own_pages = num_own_pages(link, placement.page_size)
        # With scores, what is chosen is known only when the pages are held.
        most = placement.most_private_pages if policy.needs_scores else link.num_private_pages
        num_pages = most + (len(answers) - 1) * own_pages
        super().__init__(link.chunks, num_pages, events)
        # Without a guide, scores are there as soon as the chunks are.
        self._by_scores = policy if policy.needs_scores and guide is None else None
        # What is still to choose, after the link at hand is computed.
        self._guide = guide if policy.needs_scores else None
        self.usage = Usage(0, 0, 0, 0, chunks_used=len(link.chunks))
        limit = request.answering.timeout_seconds
        self._timeout_seconds = math.inf if limit is None else limit
        self.patience_seconds = self._timeout_seconds
        self.max_new_tokens = request.max_tokens
        self._request = request
        self._placement = placement
        self._link = link
        # No other request's choice is known before it is made, so guided ones begin anew.
        may_share = not policy.needs_scores
        self._own = own_sequence(placement, link, request.namespace) if may_share else None
        self._num_reused_positions = 0
        self._count()
        self._answers = answers
        self._page_size = placement.page_size
        self._going_on: list[tuple[Answer, Tail]] = []
        self._transfer: Transfer | None = None
        self._metrics = metrics
        self._granted_at = self._started_at = 0.0
        self._answer_ids: list[int] = []

    def sequence(self) -> OwnSequence | None:
        own = self._own
        if own is None or len(self._answers) > 1:
            return own
        return own.followed_by(self._answer_ids[:-1])

    def reuse(self, num_positions: int) -> None:
        self._num_reused_positions = num_positions
        self._count()

    def admitted(self, grant: Grant, load_seconds: float) -> None:
        super().admitted(grant, load_seconds)
        self._granted_at = time.monotonic()
        self.usage.queue_seconds = self._granted_at - load_seconds - self.submitted_at
        self.usage.load_seconds = load_seconds
        missing = {r.chunk.key: r.chunk for r in grant.residents if not r.ready}
        self.usage.chunks_found = sum(chunk.key not in missing for chunk in self.chunks)
        self.usage.compiled_tokens = sum(chunk.num_tokens for chunk in missing.values())
        self._metrics.queue.observe(self.usage.queue_seconds)

    def start(self, transfer: Transfer) -> bool:
        assert self.grant is not None, "a job starts after it was granted its pages"
        self._started_at = time.monotonic()
        self.usage.compile_seconds = self._started_at - self._granted_at
        self._transfer = transfer
        self._bind(self.grant, transfer)
        if self._by_scores is not None:
            self._link_for_good(self._by_scores, self._scores(self.grant, transfer))
        return True

    def _scores(self, grant: Grant, transfer: Transfer) -> Scores:
        """What the mode says each token matters, by position."""
        # First: a ranking that is missing is found out without the pass.
        ranking, mode = None, self._request.mode
        if mode in MODES_BY_RANKING:
            rankings = {held.chunk.key: held.ranking for held in grant.residents}
            ranking = self._placement.scores_of(rankings, mode)
        if mode not in MODES_BY_ATTENTION:
            assert ranking is not None, "a mode with scores has one of both"
            return ranking
        num_rows = self._placement.question_tokens
        mass = transfer.attention_mass(self.sequences[0], num_rows)
        return mass if ranking is None else mass * ranking

    def _bind(self, grant: Grant, transfer: Transfer) -> None:
        """Make the link's sequence over the granted pages."""
        pages = {resident.chunk.key: resident.pages for resident in grant.residents}
        chunk_pages = [pages[chunk.key] for chunk in self._link.chunks]
        bound = bind(self._link, chunk_pages, grant.private_pages, self._page_size)
        copies = copies_behind(bound, grant)
        if copies:
            transfer.copy_pages(list(copies.values()), list(copies))
        self.sequences = [linked_sequence(self._link, bound, self._num_reused_positions)]

    def _count(self) -> None:
        link, usage = self._link, self.usage
        recomputed, fresh = (
            (0, 0) if self._own is None else self._own.counts(self._num_reused_positions)
        )
        usage.reused_tokens = recomputed + fresh
        usage.prompt_tokens = link.prompt_tokens
        usage.cached_tokens = link.cached_tokens + recomputed + fresh
        usage.recomputed_tokens = link.recomputed_tokens - recomputed
        usage.fresh_tokens = link.fresh_tokens - fresh

    def _link_for_good(self, policy: Policy, scores: Scores) -> None:
        """The first pass is computed: link again, by its scores."""
        assert self.grant is not None, "a job chooses while it holds its pages"
        assert self._transfer is not None, "a job chooses after it was started"
        self._guide = None
        self._link = self._placement.link(policy, scores)
        self._count()
        self._bind(self.grant, self._transfer)

    def given_up(self) -> LegokvError:
        if self.cancelled:
            return super().given_up()
        doing = "the prompt was under way"
        if not self.sequences:
            doing = self.waits_for if self.grant is None else "its documents were compiled"
        return TimedOut(
            f"no token of the answer to {self.usage.prompt_tokens} prompt tokens within "
            f"timeout_seconds {exact(self._timeout_seconds)}: {doing}; "
            "allow more, or ask when less is under way"
        )

    def draws(self, sequence: TokenSequence, row: int) -> Sequence[Draw]:
        if self._guide is not None or not self._request.max_tokens:
            return ()
        return [answer.draw(row) for answer in self._answers_of(sequence)]

    def _answers_of(self, sequence: TokenSequence) -> Sequence[Answer]:
        """Those that go on with a token behind `sequence`, in order."""
        if not self.usage.time_to_first_token_seconds:
            return self._answers
        return [answer for answer, tail in self._going_on if tail.sequence is sequence]

    def computed(self, sequence: TokenSequence, logits: Tensor, drawn: Sequence[Drawn]) -> bool:
        if self._guide is not None:
            self._link_for_good(self._guide.policy, self._guide.scores())
            return False
        if self.usage.time_to_first_token_seconds:
            going_on = [pair for pair in self._going_on if pair[1].sequence is sequence]
        else:
            self._prompt_computed()
            if self._request.max_tokens == 0:
                check_finite(logits)
                self.events.put(Prefill(logits.float().cpu(), self.usage))
                return True
            going_on = self._begun(sequence)
            self._go_on_with(going_on)
        for (answer, tail), token_id in zip(going_on, drawn, strict=True):
            self._take(answer, tail, logits, token_id)
        return not self._going_on

    def _prompt_computed(self) -> None:
        now = time.monotonic()
        self.usage.link_seconds = now - self._started_at
        self.usage.time_to_first_token_seconds = now - self.submitted_at
        self._metrics.linked(self.usage, self._request.mode)

    def _begun(self, prompt: TokenSequence) -> list[tuple[Answer, Tail]]:
        """All answers, each with where its tokens go."""
        assert self.grant is not None, "answers begin while the job holds its pages"
        assert self._transfer is not None, "answers begin after the prompt"
        private, size = self.grant.private_pages, self._page_size
        made = tails_behind(self._link, prompt, private, size, len(self._answers))
        if made.copy_sources:
            self._transfer.copy_pages(made.copy_sources, made.copy_targets)
        return list(zip(self._answers, made.tails, strict=True))

    def _take(self, answer: Answer, tail: Tail, logits: Tensor, drawn: Drawn) -> None:
        """Hand out an answer's next token; it goes on behind it, or is the job's last to end."""
        if isinstance(drawn, Exception):
            raise drawn
        now = time.monotonic()
        if answer.num_tokens:
            self._metrics.inter_token.observe(now - answer.drawn_at)
        answer.drawn_at = now
        late = now - self.submitted_at >= self._timeout_seconds
        token = answer.take(drawn, logits, late=late)
        self.patience_seconds = math.inf
        self.usage.generated_tokens += 1
        self._metrics.generated_tokens += 1
        self.events.put(token)
        self._answer_ids.append(token.id)
        if token.finish_reason is None:
            number = answer.num_tokens - 1
            position = self.usage.prompt_tokens + number
            tail.sequence.follow_with(token.id, position, int(tail.slots[number]))
            return
        self._go_on_with([pair for pair in self._going_on if pair[0] is not answer])
        if not self._going_on:
            self.events.put(Finished(token.finish_reason, self.usage))

    def _go_on_with(self, answers: list[tuple[Answer, Tail]]) -> None:
        self._going_on = answers
        self.sequences = [tail.sequence for _, tail in answers]

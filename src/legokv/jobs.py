"""What the executor works on for its callers: compile a chunk, or answer a prompt."""

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from legokv.chunks.cache import Grant
from legokv.chunks.chunk import Chunk
from legokv.chunks.prefetch import Prefetch
from legokv.engine_metrics import EngineMetrics
from legokv.errors import LegokvError
from legokv.link import Link, bind
from legokv.request import Finished, GenerateRequest, Token, Usage
from legokv.sample import Sampler
from legokv.sequence import Sequence as TokenSequence
from legokv.sequence import linked_sequence
from legokv.text import TextStream


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


Event = Token | Prefill | Finished | LegokvError


class Job:
    """Work a caller waits for: its `events` end with a Finished, a Prefill or an error."""

    def __init__(self, chunks: tuple[Chunk, ...], num_private_pages: int) -> None:
        self.chunks = chunks
        self.num_private_pages = num_private_pages
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.cancelled = False
        self.submitted_at = time.monotonic()
        self.prefetch: Prefetch | None = None
        self.grant: Grant | None = None
        self.sequence: TokenSequence | None = None

    def found(self, grant: Grant, load_seconds: float) -> None:
        """Pages were granted; `grant.new` is what no tier had and is being compiled."""

    def start(self, copy_pages: Callable[[Sequence[int], Sequence[int]], None]) -> bool:
        """All chunks are in the pool: make `sequence`, or False if there is nothing to compute."""
        raise NotImplementedError

    def computed(self, logits: Tensor) -> bool:
        """All of `sequence` is computed, `logits` float32 [V] its last: True if the job is over."""
        raise NotImplementedError


class CompileJob(Job):
    """Get one chunk compiled and kept; ends with a Finished whose usage says what it took."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__((chunk,), 0)

    def start(self, copy_pages: Callable[[Sequence[int], Sequence[int]], None]) -> bool:
        length = self.chunks[0].num_tokens
        self.events.put(Finished("stop", Usage(length, 0, 0, length, 1, compiled_tokens=length)))
        return False


class LoadJob(Job):
    """Get one chunk into the pool, from a tier or by compiling it; ends with a Finished."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__((chunk,), 0)

    def start(self, copy_pages: Callable[[Sequence[int], Sequence[int]], None]) -> bool:
        length = self.chunks[0].num_tokens
        self.events.put(Finished("stop", Usage(length, length, 0, 0, 1)))
        return False


@dataclass(frozen=True)
class Ending:
    """When an answer ends, besides its length."""

    eos_token_ids: tuple[int, ...]
    max_tokens: int


class GenerateJob(Job):
    """Link a prompt, then draw tokens until the answer ends."""

    def __init__(
        self,
        request: GenerateRequest,
        link: Link,
        text: TextStream,
        ending: Ending,
        page_size: int,
        metrics: EngineMetrics,
    ) -> None:
        super().__init__(link.chunks, link.num_private_pages)
        self.usage = Usage(
            prompt_tokens=link.prompt_tokens,
            cached_tokens=link.cached_tokens,
            recomputed_tokens=link.recomputed_tokens,
            fresh_tokens=link.fresh_tokens,
            chunks_used=len(link.chunks),
        )
        self._link = link
        self._page_size = page_size
        self._text = text
        self._ending = ending
        self._sampler = Sampler(request.sampling)
        self._metrics = metrics
        self._granted_at = self._started_at = self._token_at = 0.0

    def found(self, grant: Grant, load_seconds: float) -> None:
        self._granted_at = time.monotonic()
        self.usage.queue_seconds = self._granted_at - load_seconds - self.submitted_at
        self.usage.load_seconds = load_seconds
        self._metrics.queue.observe(self.usage.queue_seconds)
        missing = {resident.chunk.key for resident in grant.residents if not resident.ready}
        self.usage.chunks_found = len(self.chunks) - len(missing)
        self.usage.compiled_tokens = sum(c.num_tokens for c in self.chunks if c.key in missing)

    def start(self, copy_pages: Callable[[Sequence[int], Sequence[int]], None]) -> bool:
        assert self.grant is not None, "a job starts after it was granted its pages"
        self._started_at = time.monotonic()
        self.usage.compile_seconds = self._started_at - self._granted_at
        chunk_pages = [resident.pages for resident in self.grant.residents]
        bound = bind(self._link, chunk_pages, self.grant.private_pages, self._page_size)
        if bound.copy_sources:
            copy_pages(bound.copy_sources, bound.copy_targets)
        self.sequence = linked_sequence(self._link, bound)
        return True

    def computed(self, logits: Tensor) -> bool:
        self._note_time(time.monotonic())
        if self._ending.max_tokens == 0:
            self.events.put(Prefill(logits, self.usage))
            return True
        token_id = self._sampler.next(logits.numpy())
        finish_reason = self._emit(token_id)
        if finish_reason is None:
            self._follow_with(token_id)
            return False
        self.events.put(Finished(finish_reason, self.usage))
        return True

    def _note_time(self, now: float) -> None:
        if self.usage.time_to_first_token_seconds:
            self._metrics.inter_token.observe(now - self._token_at)
        else:
            self.usage.link_seconds = now - self._started_at
            self.usage.time_to_first_token_seconds = now - self.submitted_at
            self._metrics.linked(self.usage)
        self._token_at = now

    def _emit(self, token_id: int) -> str | None:
        """Hand out a token; the reason why it is the last, if it is."""
        self.usage.generated_tokens += 1
        self._metrics.generated(1)
        ended = token_id in self._ending.eos_token_ids
        text = "" if ended else self._text.push(token_id)
        finish_reason = None
        if ended or self._text.stopped:
            finish_reason = "stop"
        elif self.usage.generated_tokens == self._ending.max_tokens:
            finish_reason = "length"
        if finish_reason is not None:
            text += self._text.finish()
        self.events.put(Token(token_id, text, finish_reason))
        return finish_reason

    def _follow_with(self, token_id: int) -> None:
        assert self.grant is not None, "tokens are drawn while the job holds its pages"
        assert self.sequence is not None, "tokens are drawn after the prompt"
        position = self.usage.prompt_tokens + self.usage.generated_tokens - 1
        offset = position - self._link.tail_position
        page = self.grant.private_pages[self._link.tail_private + offset // self._page_size]
        self.sequence.follow_with(
            token_id, position, page * self._page_size + offset % self._page_size
        )

"""What an engine counts and times while it works, and its state, as published numbers."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from legokv.chunks.stats import EvictionReason, TierStats
from legokv.engine.request import MODES, Usage
from legokv.errors import UnreadableReason
from legokv.metrics import Family, Histogram, Sample

PROMPT_TOKENS = Family(
    "legokv_prompt_tokens_total", "counter", "Prompt tokens: read as stored, recomputed, or fresh"
)
REUSED_TOKENS = Family(
    "legokv_reused_tokens_total", "counter", "Cached prompt tokens that ended requests had computed"
)
PROMPTS = Family("legokv_prompts_total", "counter", "Prompts with their first logits, by mode")
GENERATED_TOKENS = Family("legokv_generated_tokens_total", "counter", "Tokens of answers")
LOOKUPS = Family("legokv_chunk_lookups_total", "counter", "Chunks looked for in a tier")
EVICTIONS = Family("legokv_evictions_total", "counter", "Chunks that left a tier, and why")
FAILED_READS = Family(
    "legokv_failed_reads_total", "counter", "Stored chunks that could not be read back, and why"
)
FAILED_STEPS = Family(
    "legokv_failed_steps_total", "counter", "Steps that failed and ended requests, and whose fault"
)
CACHE_BYTES = Family("legokv_cache_bytes", "gauge", "KV in a tier; the pool's with requests' own")
LEASES = Family("legokv_active_leases", "gauge", "Chunks leased, in all tiers together")
PAGES_USED = Family("legokv_pool_pages_used", "gauge", "Pages of the pool that are not free")
RUNNING = Family("legokv_requests_running", "gauge", "Answers and registrations that hold pages")
WAITING = Family("legokv_requests_waiting", "gauge", "Answers and registrations that wait for them")

FailedStepReason = Literal["runner", "engine"]
"""The runner's fault ends the requests of its step; the engine's own ends all that is under way."""

# A chunk that is not there is a miss.
_FAILED_READ_REASONS = [reason for reason in get_args(UnreadableReason) if reason != "missing"]


class EngineMetrics:
    """Counts and times since the start. Written by whoever steps, read by any thread.

    `generated_tokens` are those drawn for all answers.
    """

    def __init__(self) -> None:
        self.queue = Histogram(
            "legokv_request_queue_seconds", "From a request's arrival at the engine to its pages"
        )
        self.compile = Histogram(
            "legokv_compile_seconds", "A chunk's compile, from its pages to its KV in them"
        )
        self.link = Histogram(
            "legokv_link_seconds", "From having all chunks to a request's first logits"
        )
        self.inter_token = Histogram(
            "legokv_inter_token_latency_seconds", "From one token of an answer to its next"
        )
        self._prompt_tokens = {"cached": 0, "recomputed": 0, "fresh": 0}
        self._prompts = dict.fromkeys(MODES, 0)
        self._failed_steps: dict[FailedStepReason, int] = {"runner": 0, "engine": 0}
        self.generated_tokens = 0
        self._reused_tokens = 0

    def step_failed(self, reason: FailedStepReason) -> None:
        """A step failed; those whose work was in it have ended."""
        self._failed_steps[reason] += 1

    def linked(self, usage: Usage, mode: str) -> None:
        """A request has its first logits; `usage` says whence its prompt's KV came, and when."""
        self._prompts[mode] += 1
        self.link.observe(usage.link_seconds)
        self._prompt_tokens["cached"] += usage.cached_tokens
        self._prompt_tokens["recomputed"] += usage.recomputed_tokens
        self._prompt_tokens["fresh"] += usage.fresh_tokens
        self._reused_tokens += usage.reused_tokens

    def samples(self) -> Iterator[Sample]:
        """All that was counted and timed; zeros before anything was."""
        for histogram in (self.queue, self.compile, self.link, self.inter_token):
            yield from histogram.samples()
        for source, number in self._prompt_tokens.items():
            yield Sample(PROMPT_TOKENS, (("source", source),), number)
        yield Sample(REUSED_TOKENS, (), self._reused_tokens)
        for mode, number in self._prompts.items():
            yield Sample(PROMPTS, (("mode", mode),), number)
        for reason, number in self._failed_steps.items():
            yield Sample(FAILED_STEPS, (("reason", reason),), number)
        yield Sample(GENERATED_TOKENS, (), self.generated_tokens)


def tier_samples(tiers: Iterable[TierStats]) -> Iterator[Sample]:
    """What is in each tier and what happened there; a zero for what can happen and did not."""
    failed_reads = Counter(dict.fromkeys(_FAILED_READ_REASONS, 0))
    num_leases = 0
    for stats in tiers:
        tier = ("tier", stats.tier)
        yield Sample(CACHE_BYTES, (tier,), stats.num_bytes)
        for result, number in (("hit", stats.hits), ("miss", stats.misses)):
            yield Sample(LOOKUPS, (tier, ("result", result)), number)
        for reason in get_args(EvictionReason):
            yield Sample(EVICTIONS, (tier, ("reason", reason)), stats.evictions.get(reason, 0))
        failed_reads.update(stats.failed_reads)
        num_leases += stats.num_leases
    for reason, number in failed_reads.items():
        yield Sample(FAILED_READS, (("reason", reason),), number)
    yield Sample(LEASES, (), num_leases)

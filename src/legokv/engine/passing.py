"""Who may pass a request that waits for pages, so that a giant neither stops the small nor starves.

Host arithmetic; grants nothing.
"""

from collections.abc import Iterable, Sequence

from legokv.chunks.pool import ChunkCache
from legokv.engine.jobs import Job

PASSING_POOL_SHARE = 8
"""A job that passes needs at most the pool's pages divided by this."""
PASSING_MAX_TOKENS = 512
"""A job that passes answers with at most so many tokens: no longer can it keep the first."""


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

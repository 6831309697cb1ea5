"""Which chunks lie in the page pool, who leases them, and which leave when room is needed.

Host bookkeeping only: it hands out page numbers; computing and loading KV is the executor's.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from legokv.chunks.budget import Budget, Candidate, victims
from legokv.chunks.chunk import Chunk
from legokv.chunks.stats import TierCounts, TierStats
from legokv.errors import Busy, CacheUnavailable, PoolFull

log = logging.getLogger(__name__)


class PagePool:
    """Hands out page numbers 0 to num_pages - 1; a page has one holder at a time."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._taken: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._taken)

    def pages_for(self, num_tokens: int) -> int:
        """How many pages `num_tokens` tokens fill."""
        return -(-num_tokens // self.page_size)

    def take(self, num_pages: int) -> list[int]:
        """That many free pages; PoolFull, and nothing taken, if there are too few."""
        if num_pages > len(self._free):
            raise PoolFull(
                f"{num_pages} pages of {self.page_size} tokens are needed, "
                f"{len(self._free)} of {self.num_pages} are free"
            )
        pages = [self._free.pop() for _ in range(num_pages)]
        self._taken.update(pages)
        return pages

    def give_back(self, pages: Iterable[int]) -> None:
        """Return pages taken before; a page that is not out is a caller's bug."""
        for page in pages:
            assert page in self._taken, f"page {page} is given back but was not taken"
            self._taken.remove(page)
            self._free.append(page)


@dataclass
class Resident:
    """A chunk with pages in the pool; `ready` once its KV is in them."""

    chunk: Chunk
    pages: list[int]
    ready: bool = False
    leases: int = 0
    dropped: bool = False


@dataclass(frozen=True)
class Evicted:
    """A chunk that left the pool, and the pages its KV is in until something is written there."""

    chunk: Chunk
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Grant:
    """Pages for one request: a leased resident per chunk asked, `new` ones still without KV.

    The `evicted` left for it; their KV is still in its pages, which others may hold by now.
    """

    residents: tuple[Resident, ...]
    new: tuple[Resident, ...]
    private_pages: list[int]
    evicted: tuple[Evicted, ...] = ()

    def resident_of(self, chunk: Chunk) -> Resident:
        """The grant's resident of a chunk that was asked."""
        return next(r for r in self.residents if r.chunk.key == chunk.key)


class ChunkCache:
    """Chunks in the pool, least recently used first. A leased or pinned chunk is never evicted, and
    one without KV has a lease.

    Filled past its `high_watermark` share, the pool evicts down to its `low_watermark` one; 1: no
    more than must leave.
    """

    def __init__(
        self,
        pool: PagePool,
        pinned_keys: Callable[[], Collection[str]] = frozenset,
        high_watermark: float = 1.0,
        low_watermark: float = 1.0,
    ) -> None:
        self.pool = pool
        self._budget = Budget(pool.num_pages, high_watermark, low_watermark)
        self._counts = TierCounts("pool")
        self._ask_pinned_keys = pinned_keys
        self._known_pins: frozenset[str] = frozenset()
        self._residents: dict[str, Resident] = {}

    def find(self, key: str) -> Resident | None:
        return self._residents.get(key)

    @property
    def residents(self) -> tuple[Resident, ...]:
        """All chunks in the pool, least recently used first."""
        return tuple(self._residents.values())

    @property
    def num_leases(self) -> int:
        return sum(resident.leases for resident in self._residents.values())

    def stats(self, page_bytes: int) -> TierStats:
        """The pool as a tier of pages of `page_bytes`; private pages count as well."""
        return self._counts.stats(
            num_chunks=len(self._residents),
            num_bytes=self.pool.num_used * page_bytes,
            max_bytes=self.pool.num_pages * page_bytes,
            num_leases=sum(resident.leases > 0 for resident in self.residents),
        )

    def grant(self, chunks: Sequence[Chunk], num_private_pages: int) -> Grant:
        """Lease all `chunks` and take the private pages, or PoolFull and take nothing.

        Chunks not in the pool get pages there, others that nobody leases making room.
        """
        absent = [chunk for chunk in chunks if chunk.key not in self._residents]
        needed = num_private_pages + sum(self._pages_of(chunk) for chunk in absent)
        evicted = self._make_room(needed, {chunk.key for chunk in chunks})
        self._counts.add("misses", len(absent))
        self._counts.add("hits", len(chunks) - len(absent))
        new = tuple(self._place(chunk) for chunk in absent)
        residents = tuple(self._use(chunk.key) for chunk in chunks)
        return Grant(residents, new, self.pool.take(num_private_pages), evicted)

    def would_grant(
        self, chunks: Sequence[Chunk], num_private_pages: int, without: Iterable[Grant]
    ) -> bool:
        """Whether `grant` would be given if the grants `without` were released.

        A chunk that is compiled for none but them counts as released.
        """
        ended = list(without)
        theirs = Counter(id(resident) for grant in ended for resident in grant.residents)
        protected = {chunk.key for chunk in chunks} | self._pinned_keys()
        available = self.pool.num_free + sum(len(grant.private_pages) for grant in ended)
        for resident in self._residents.values():
            # Until a chunk is ready, the job that compiles it has a lease too.
            others = resident.leases - theirs[id(resident)] - (not resident.ready)
            if others <= 0 and resident.chunk.key not in protected:
                available += len(resident.pages)
        absent = [chunk for chunk in chunks if chunk.key not in self._residents]
        return num_private_pages + sum(map(self._pages_of, absent)) <= available

    def release(self, grant: Grant) -> None:
        """End the grant's leases and free its private pages."""
        self.pool.give_back(grant.private_pages)
        for resident in grant.residents:
            self.end_lease(resident)

    def lease(self, resident: Resident) -> None:
        """Keep a chunk's pages until `end_lease`, whoever else holds or drops it."""
        resident.leases += 1

    def end_lease(self, resident: Resident) -> None:
        """End one lease; with the last, a chunk that was dropped or has no KV frees its pages."""
        resident.leases -= 1
        if not (resident.leases or resident.ready or resident.dropped):
            self.drop(resident.chunk.key)
        self._free_if_dropped(resident)

    def mark_ready(self, resident: Resident) -> None:
        """The resident's KV is in its pages."""
        resident.ready = True

    def drop(self, key: str) -> None:
        """Forget a chunk; its pages are freed when its last lease ends."""
        resident = self._residents.pop(key, None)
        if resident is not None:
            resident.dropped = True
            self._free_if_dropped(resident)

    def pages_needed(self, chunks: Sequence[Chunk], num_private_pages: int) -> int:
        """Pages a request over `chunks` holds at once, whatever is in the pool now."""
        return num_private_pages + sum(self._pages_of(chunk) for chunk in chunks)

    def _pages_of(self, chunk: Chunk) -> int:
        return self.pool.pages_for(chunk.num_tokens)

    def _make_room(self, num_pages: int, keep: set[str]) -> tuple[Evicted, ...]:
        target, needed = self._budget.to_free(self.pool.num_used, num_pages)
        if not target:
            return ()
        protected = keep | self._pinned_keys()
        evictable = [
            resident
            for key, resident in self._residents.items()
            if not resident.leases and key not in protected
        ]
        candidates = [Candidate(r.chunk.key, len(r.pages)) for r in evictable]
        leaving = victims(candidates, target, needed)
        if leaving is None:
            available = self.pool.num_free + sum(candidate.size for candidate in candidates)
            raise PoolFull(
                f"{num_pages} pages of {self.pool.page_size} tokens are needed, {available} of "
                f"{self.pool.num_pages} are free or can be freed"
            )
        return tuple(self._evict(candidate.key) for candidate in leaving)

    def _pinned_keys(self) -> frozenset[str]:
        """The pinned chunks, as they were known last while nobody can say."""
        try:
            self._known_pins = frozenset(self._ask_pinned_keys())
        except (CacheUnavailable, Busy) as error:
            log.warning("pins are used as they were known last: %s", error)
        return self._known_pins

    def _evict(self, key: str) -> Evicted:
        resident = self._residents[key]
        evicted = Evicted(resident.chunk, tuple(resident.pages))
        self.drop(key)
        self._counts.add_evictions("budget")
        return evicted

    def _place(self, chunk: Chunk) -> Resident:
        resident = Resident(chunk, self.pool.take(self._pages_of(chunk)))
        self._residents[chunk.key] = resident
        return resident

    def _use(self, key: str) -> Resident:
        resident = self._residents.pop(key)
        self._residents[key] = resident
        self.lease(resident)
        return resident

    def _free_if_dropped(self, resident: Resident) -> None:
        if resident.dropped and not resident.leases and resident.pages:
            self.pool.give_back(resident.pages)
            resident.pages = []

"""Which chunks lie in the page pool, who leases them, and which leave when room is needed.

Host bookkeeping only: it hands out page numbers; computing and loading KV is the executor's.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from legokv.chunks.budget import Budget, Candidate, victims
from legokv.chunks.chunk import Chunk
from legokv.chunks.stats import TierCounts, TierStats
from legokv.errors import Busy, CacheUnavailable, PoolFull

Ranking = NDArray[np.float32]
"""[n]: what each token of a chunk is worth when some are computed again; higher is more."""

log = logging.getLogger(__name__)


class PagePool:
    """Hands out page numbers 0 to num_pages - 1; a page has one holder unless it is shared."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._num_holders: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._num_holders)

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
        self._num_holders.update(dict.fromkeys(pages, 1))
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more holder of each page: it is free when all have given it back."""
        for page in pages:
            self._num_holders[page] += 1

    def num_freed(self, holders: Mapping[int, int]) -> int:
        """How many pages would be free if each were given back so many times."""
        return sum(self._num_holders[page] == number for page, number in holders.items())

    def give_back(self, pages: Iterable[int]) -> None:
        """Return pages taken before; a page that is not out is a caller's bug."""
        for page in pages:
            assert page in self._num_holders, f"page {page} is given back but was not taken"
            self._num_holders[page] -= 1
            if not self._num_holders[page]:
                del self._num_holders[page]
                self._free.append(page)


@dataclass
class Resident:
    """A chunk with pages in the pool; `ready` once its KV is in them. Its ranking if it has one.

    One that `is_sequence` is an ended request's own pages, and its chunk but a name for them.
    """

    chunk: Chunk
    pages: list[int]
    ready: bool = False
    leases: int = 0
    dropped: bool = False
    is_sequence: bool = False
    ranking: Ranking | None = None


@dataclass(frozen=True)
class Evicted:
    """A chunk that left the pool, and the pages its KV is in until something is written there."""

    chunk: Chunk
    pages: tuple[int, ...]
    ranking: Ranking | None = None


@dataclass(frozen=True)
class Reused:
    """Pages of an ended request, by the number of the private page in whose place each is.

    The `shared` are read as they are; the `copied` are copied before they are written to.
    """

    shared: Mapping[int, int] = field(default_factory=dict)
    copied: Mapping[int, int] = field(default_factory=dict)

    @property
    def pages(self) -> tuple[int, ...]:
        return (*self.shared.values(), *self.copied.values())


@dataclass(frozen=True)
class Grant:
    """Pages for one request: a leased resident per chunk asked, `new` ones still without KV.

    The `evicted` left for it; their KV is still in its pages, which others may hold by now. Among
    the `private_pages` are those that are `reused` and shared.
    """

    residents: tuple[Resident, ...]
    new: tuple[Resident, ...]
    private_pages: list[int]
    evicted: tuple[Evicted, ...] = ()
    reused: Reused = field(default_factory=Reused)

    @property
    def own_pages(self) -> tuple[int, ...]:
        """All that it holds besides chunks: the private ones, and those it copies."""
        return (*self.private_pages, *self.reused.copied.values())

    def resident_of(self, chunk: Chunk) -> Resident:
        """The grant's resident of a chunk that was asked."""
        return next(r for r in self.residents if r.chunk.key == chunk.key)


NOTHING_REUSED = Reused()


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
        return tuple(r for r in self._residents.values() if not r.is_sequence)

    @property
    def num_leases(self) -> int:
        return sum(resident.leases for resident in self._residents.values())

    def stats(self, page_bytes: int) -> TierStats:
        """The pool as a tier of pages of `page_bytes`; private pages count as well."""
        return self._counts.stats(
            num_chunks=len(self.residents),
            num_bytes=self.pool.num_used * page_bytes,
            max_bytes=self.pool.num_pages * page_bytes,
            num_leases=sum(resident.leases > 0 for resident in self.residents),
        )

    def grant(
        self, chunks: Sequence[Chunk], num_private_pages: int, reused: Reused = NOTHING_REUSED
    ) -> Grant:
        """Lease all `chunks` and take the private pages, or PoolFull and take nothing.

        Chunks not in the pool get pages there, others that nobody leases making room. What is
        `reused` stays, though the sequence it was kept with may leave.
        """
        absent = [chunk for chunk in chunks if chunk.key not in self._residents]
        num_own = num_private_pages - len(reused.shared)
        needed = num_own + sum(self._pages_of(chunk) for chunk in absent)
        self.pool.share(reused.pages)
        try:
            evicted = self._make_room(needed, {chunk.key for chunk in chunks})
        except PoolFull:
            self.pool.give_back(reused.pages)
            raise
        self._counts.add("misses", len(absent))
        self._counts.add("hits", len(chunks) - len(absent))
        new = tuple(self._place(chunk) for chunk in absent)
        residents = tuple(self._use(chunk.key) for chunk in chunks)
        own = iter(self.pool.take(num_own))
        private = [
            reused.shared[number] if number in reused.shared else next(own)
            for number in range(num_private_pages)
        ]
        return Grant(residents, new, private, evicted, reused)

    def would_grant(
        self, chunks: Sequence[Chunk], num_private_pages: int, without: Iterable[Grant]
    ) -> bool:
        """Whether `grant` would be given if the grants `without` were released.

        A chunk that is compiled for none but them counts as released.
        """
        ended = list(without)
        theirs = Counter(id(resident) for grant in ended for resident in grant.residents)
        protected = {chunk.key for chunk in chunks} | self._pinned_keys()
        freed = Counter(page for grant in ended for page in grant.own_pages)
        for resident in self._residents.values():
            # Until a chunk is ready, the job that compiles it has a lease too.
            others = resident.leases - theirs[id(resident)] - (not resident.ready)
            if others <= 0 and resident.chunk.key not in protected:
                freed.update(resident.pages)
        absent = [chunk for chunk in chunks if chunk.key not in self._residents]
        available = self.pool.num_free + self.pool.num_freed(freed)
        return num_private_pages + sum(map(self._pages_of, absent)) <= available

    def keep_sequence(self, key: str, pages: Sequence[int]) -> None:
        """Hold an ended request's pages too, under a key of its own, until room is needed."""
        self.pool.share(pages)
        chunk = Chunk(key, "", (), persistent=False)
        self._residents[key] = Resident(chunk, list(pages), ready=True, is_sequence=True)

    def touch(self, key: str) -> None:
        """Have it be the most recently used."""
        self._residents[key] = self._residents.pop(key)

    def release(self, grant: Grant) -> None:
        """End the grant's leases and free its private pages."""
        self.pool.give_back(grant.own_pages)
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
        candidates = self._candidates(evictable)
        leaving = victims(candidates, target, needed)
        if leaving is None:
            available = self.pool.num_free + sum(candidate.size for candidate in candidates)
            raise PoolFull(
                f"{num_pages} pages of {self.pool.page_size} tokens are needed, {available} of "
                f"{self.pool.num_pages} are free or can be freed"
            )
        gone = [self._evict(candidate.key) for candidate in leaving]
        return tuple(evicted for evicted in gone if evicted is not None)

    def _candidates(self, evictable: Sequence[Resident]) -> list[Candidate]:
        """Each with the pages that are free once it and all before it have left."""
        freed: Counter[int] = Counter()
        candidates = []
        for resident in evictable:
            freed.update(resident.pages)
            size = self.pool.num_freed({page: freed[page] for page in resident.pages})
            candidates.append(Candidate(resident.chunk.key, size))
        return candidates

    def _pinned_keys(self) -> frozenset[str]:
        """The pinned chunks, as they were known last while nobody can say."""
        try:
            self._known_pins = frozenset(self._ask_pinned_keys())
        except (CacheUnavailable, Busy) as error:
            log.warning("pins are used as they were known last: %s", error)
        return self._known_pins

    def _evict(self, key: str) -> Evicted | None:
        """What left, if it was a chunk: sequences go nowhere else."""
        resident = self._residents[key]
        evicted = Evicted(resident.chunk, tuple(resident.pages), resident.ranking)
        self.drop(key)
        if resident.is_sequence:
            return None
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

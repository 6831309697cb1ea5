"""The tiers below the pool as one: where a chunk is looked for, and where it is kept."""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ParamSpec, TypeVar

from legokv.chunks.chunk import Chunk
from legokv.chunks.header import StoredDtype
from legokv.chunks.stats import TierStats
from legokv.chunks.stored_kv import KvForm, StoredKv
from legokv.chunks.tier import ChunkTier
from legokv.chunks.write_behind import WriteBehind
from legokv.errors import Busy, CacheUnavailable, ChunkUnreadable, StillUnavailable
from legokv.metrics import Histogram

LEASE_SECONDS = 120.0

Asked = ParamSpec("Asked")
T = TypeVar("T")

log = logging.getLogger(__name__)


class LowerTiers:
    """Tiers from the fastest to the slowest. Nothing here fails: a tier that does is passed over.

    Persistent chunks are written to durable tiers when they are compiled; the others hold what
    was used of late. `stored_dtype` says in which form. What a durable tier gives that is not of
    the model's `form`, or not finite, is damaged. With `write_behind` durable tiers are changed by
    threads of their own, and what the docstrings call "at hand" is had without waiting for a disk
    or a network. Safe to use from several threads.
    """

    def __init__(
        self,
        tiers: Sequence[ChunkTier],
        stored_dtype: StoredDtype = "model",
        form: KvForm | None = None,
        *,
        write_behind: bool = False,
    ) -> None:
        self.tiers = tuple(tiers)
        self._asked: tuple[ChunkTier, ...] = tuple(
            WriteBehind(tier) if write_behind and tier.durable else tier for tier in tiers
        )
        self._write_behind = write_behind
        self.stored_dtype = stored_dtype
        self._form = form
        self._unfit: dict[str, Counter[str]] = {tier.name: Counter() for tier in tiers}
        self.load_times = {
            tier.name: Histogram(
                "legokv_kv_load_seconds", "A chunk's KV read from a tier", (("tier", tier.name),)
            )
            for tier in tiers
        }

    def has(self, chunk: Chunk) -> bool:
        """Whether some tier would probably give the chunk's KV."""
        return any(self._has(tier, chunk) for tier in self._asked)

    def tier_of(self, key: str) -> str:
        """The fastest tier that probably has the chunk of this key, "" if none has."""
        return next((t.name for t in self._asked if _passing_over(t, t.has, key)), "")

    def is_kept(self, chunk: Chunk) -> bool:
        """Whether all that shall be done to keep a compiled chunk is done, or begun."""
        durable = [tier for tier in self._asked if tier.durable]
        return (
            bool(durable) and chunk.persistent and all(self._has(tier, chunk) for tier in durable)
        )

    def is_at_hand(self, chunk: Chunk) -> bool:
        """Whether `read_at_hand` gives all that `read` would; asks no durable tier."""
        return not self._write_behind or any(self._surely_has(tier, chunk) for tier in self._asked)

    def read_at_hand(self, chunk: Chunk) -> StoredKv | None:
        """The chunk's KV if it is at hand, None if it is not."""
        return self.read(chunk) if self.is_at_hand(chunk) else None

    def read(self, chunk: Chunk) -> StoredKv | None:
        """The chunk's KV from the fastest tier that has it whole; None if none has.

        It is put into the faster tiers as well, and damaged copies of it are removed.
        """
        for number, tier in enumerate(self._asked):
            kv = _passing_over(tier, self._read, tier, chunk)
            if kv is not None:
                for faster in self._asked[:number]:
                    _passing_over(faster, faster.write, chunk, kv)
                return kv
        return None

    def fetchable(self, chunk: Chunk) -> bool:
        """Whether `fetch` would bring the chunk from a slower tier into one that holds it ready."""
        ready, slower = self._ready_tiers(), [tier for tier in self._asked if tier.durable]
        return (
            bool(ready)
            and not any(self._has(tier, chunk) for tier in ready)
            and any(self._has(tier, chunk) for tier in slower)
        )

    def fetch(self, chunk: Chunk) -> None:
        """Bring a chunk that is `fetchable` into the fastest tier."""
        if self.fetchable(chunk):
            self.read(chunk)

    def fetch_into(self, name: str, chunk: Chunk) -> bool:
        """Whether the tier of that name or a faster one has the chunk, read from a slower if not.

        False where there is no such tier.
        """
        places = [number for number, tier in enumerate(self._asked) if tier.name == name]
        upper = self._asked[: places[0] + 1] if places else ()
        if upper and not any(self._has(tier, chunk) for tier in upper):
            self.read(chunk)
        return any(self._has(tier, chunk) for tier in upper)

    def lacking(self, chunk: Chunk) -> list[ChunkTier]:
        """The tiers that are to keep the chunk once it is compiled, and do not have it.

        One that is written behind is not asked: it looks for itself before it writes.
        """
        if not chunk.persistent:
            return []
        return [tier for tier in self._asked if tier.durable and not self._surely_has(tier, chunk)]

    def keep(self, chunk: Chunk, kv: StoredKv, lacking: Iterable[ChunkTier]) -> None:
        """Store a compiled chunk in the tiers that are `lacking` it."""
        for tier in lacking:
            _passing_over(tier, tier.write, chunk, kv)

    def keep_surely(self, chunk: Chunk, kv: StoredKv, lacking: Iterable[ChunkTier]) -> None:
        """`keep`, however much waits to be written, for one who will wait in `flush`."""
        for tier in lacking:
            write = tier.write_surely if isinstance(tier, WriteBehind) else tier.write
            _passing_over(tier, write, chunk, kv)

    def flush(self, seconds: float | None = None) -> None:
        """Return when all that was to be written or removed is, or after `seconds` a tier."""
        for tier in self._asked:
            if isinstance(tier, WriteBehind):
                tier.flush(seconds)

    def takes_evicted(self, chunk: Chunk) -> bool:
        """Whether a tier wants what leaves the pool; `keep_evicted` is then worth a copy."""
        return any(not self._has(tier, chunk) for tier in self._ready_tiers())

    def keep_evicted(self, chunk: Chunk, kv: StoredKv) -> None:
        """Hold on to a chunk that left the pool."""
        for tier in self._ready_tiers():
            _passing_over(tier, tier.write, chunk, kv)

    def remove(self, key: str) -> None:
        """Let the chunk go everywhere, from a tier that leases it when that lease ends."""
        for tier in self._asked:
            _passing_over(tier, tier.remove, key)

    def touch(self, keys: Collection[str]) -> None:
        """Note that these chunks were used, also by a request that found them in the pool."""
        for tier in self._asked:
            _passing_over(tier, tier.touch, keys)

    @contextmanager
    def leased(self, keys: Collection[str], seconds: float = LEASE_SECONDS) -> Iterator[None]:
        """Keep the chunks from eviction in every tier for the block, or `seconds` at most."""
        holder = uuid.uuid4().hex
        try:
            for tier in self._asked:
                _passing_over(tier, tier.lease, holder, keys, seconds)
            yield
        finally:
            for tier in self._asked:
                _passing_over(tier, tier.release, holder)

    def stats(self) -> tuple[TierStats, ...]:
        """The state of each tier, fastest first."""
        return tuple(self._stats(tier) for tier in self.tiers)

    def _stats(self, tier: ChunkTier) -> TierStats:
        stats = tier.stats()
        failed_reads = Counter(stats.failed_reads) + self._unfit[tier.name]
        return replace(stats, failed_reads=dict(failed_reads))

    def _ready_tiers(self) -> list[ChunkTier]:
        return [tier for tier in self._asked if not tier.durable]

    def _surely_has(self, tier: ChunkTier, chunk: Chunk) -> bool:
        if isinstance(tier, WriteBehind):
            return tier.is_coming(chunk.key)
        return self._has(tier, chunk)

    def _has(self, tier: ChunkTier, chunk: Chunk) -> bool:
        return bool(_passing_over(tier, tier.has, chunk.key))

    def _read(self, tier: ChunkTier, chunk: Chunk) -> StoredKv | None:
        started = time.monotonic()
        try:
            kv = tier.read(chunk)
            self._check(tier, chunk, kv)
        except ChunkUnreadable as error:
            if error.reason != "missing" and tier.has(chunk.key):
                log.warning("a chunk is compiled or fetched again: %s", error)
                tier.discard(chunk.key)
            return None
        self.load_times[tier.name].observe(time.monotonic() - started)
        return kv

    def _check(self, tier: ChunkTier, chunk: Chunk, kv: StoredKv) -> None:
        """ChunkUnreadable for KV that no pool can take, or that would spoil every answer over it.

        What is in memory came from the pool, or from a durable tier through here.
        """
        if self._form is None or not tier.durable:
            return
        try:
            self._form.check(kv, chunk.num_tokens)
        except ChunkUnreadable as error:
            self._unfit[tier.name][error.reason] += 1
            what = f"chunk {chunk.key[:12]} of the {tier.name} tier: {error}"
            raise ChunkUnreadable(what, error.reason) from error


def _passing_over(
    tier: ChunkTier, ask: Callable[Asked, T], *args: Asked.args, **kwargs: Asked.kwargs
) -> T | None:
    """What a tier gives; None from one that cannot be used now, and its log line says why."""
    try:
        return ask(*args, **kwargs)
    except (CacheUnavailable, Busy) as error:
        level = logging.DEBUG if isinstance(error, StillUnavailable) else logging.WARNING
        log.log(level, "going on without the %s tier: %s", tier.name, error)
        return None

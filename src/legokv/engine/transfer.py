"""Moves chunks' KV between the pool and the tiers below it. Knows no jobs and no order of work."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.chunks.pool import ChunkCache, Evicted, Resident
from legokv.chunks.prefetch import Prefetch, Prefetcher
from legokv.chunks.stored_kv import StoredKv, from_stored, is_finite, split_ranking, to_stored
from legokv.chunks.tiers import LowerTiers
from legokv.engine.dropped_keys import DroppedKeys
from legokv.errors import NotFinite
from legokv.link.policy import Scores
from legokv.runners import Runner
from legokv.step.batch import step_batch
from legokv.step.sequence import TokenSequence


class Transfer:
    """What a pool's executor asks of the tiers; `prefetch` and `is_kept` are for any thread."""

    def __init__(self, runner: Runner, cache: ChunkCache, tiers: LowerTiers) -> None:
        self._runner = runner
        self._cache = cache
        self._tiers = tiers
        self._prefetcher = Prefetcher(tiers)
        self._dropped = DroppedKeys()

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole pages in every layer, before the next step."""
        self._runner.copy_pages(sources, targets)

    def attention_mass(self, sequence: TokenSequence, num_rows: int) -> Scores:
        """What a sequence's last rows attend to, by position; all its tokens are computed."""
        batch = step_batch([sequence.next(sequence.num_left)])
        mass: Scores = self._runner.attention_mass(batch, num_rows).numpy()
        return mass

    def prefetch(self, chunks: Sequence[Chunk]) -> Prefetch | None:
        """Begin to fetch what is not in the pool; None if there is nothing to fetch."""
        missing = [chunk for chunk in chunks if self._cache.find(chunk.key) is None]
        return self._prefetcher.begin(missing) if missing else None

    def fetch(self, chunks: Sequence[Chunk]) -> Prefetch | None:
        """Begin to read what is neither in the pool nor at hand; None if all is."""
        far = [c for c in chunks if not (self._cache.find(c.key) or self._tiers.is_at_hand(c))]
        return self._prefetcher.read(far) if far else None

    def can_load(self, chunk: Chunk, held: Mapping[str, StoredKv]) -> bool:
        """Whether `load` would probably find the chunk's KV."""
        return chunk.key in held or (self._tiers.is_at_hand(chunk) and self._tiers.has(chunk))

    def is_kept(self, chunk: Chunk) -> bool:
        """Whether the chunk is compiled and stored wherever it shall be."""
        return self._tiers.is_kept(chunk)

    def load(self, resident: Resident, held: Mapping[str, StoredKv]) -> bool:
        """Fill a new resident's pages with what is held or at hand; False if its KV is neither."""
        kv = held.get(resident.chunk.key)
        if kv is None:
            kv = self._tiers.read_at_hand(resident.chunk)
        if kv is None:
            return False
        self._runner.import_pages(resident.pages, from_stored(kv))
        _, ranking = split_ranking(kv)
        resident.ranking = None if ranking is None else ranking.numpy()
        self._cache.mark_ready(resident)
        return True

    def settle(self, resident: Resident) -> StoredKv:
        """Round KV that was just computed to what a tier would give back, which is returned: one
        key has one KV. NotFinite for KV that would spoil every answer over it.
        """
        chunk = resident.chunk
        kv = self._runner.export_pages(resident.pages, chunk.num_tokens)
        if not is_finite(kv):
            raise NotFinite(
                f"the KV of a chunk of {chunk.num_tokens} tokens has NaN or infinity, and is not "
                "kept: its text or the weights overflow the type that is computed in; try "
                "another text, or the setting dtype float32"
            )
        stored = to_stored(kv, self._tiers.stored_dtype)
        if self._tiers.stored_dtype != "model":
            self._runner.import_pages(resident.pages, from_stored(stored))
        return stored

    def store(self, resident: Resident, stored: StoredKv | None = None) -> None:
        """Keep a resident's KV wherever it shall be and is not; nowhere, if the chunk was dropped
        since somebody wanted it stored.

        stored: what was just computed, which may be left out where too much waits to be written.
        """
        chunk = resident.chunk
        lacking = [] if chunk.key in self._dropped else self._tiers.lacking(chunk)
        if not lacking:
            return
        if stored is not None:
            self._tiers.keep(chunk, stored, lacking)
        else:
            self._tiers.keep_surely(chunk, self._stored(resident), lacking)

    def keep_evicted(self, evicted: Sequence[Evicted]) -> None:
        """Hold on to what left the pool; to be called before its pages are written to."""
        for gone in evicted:
            chunk = gone.chunk
            if chunk.key not in self._dropped and self._tiers.takes_evicted(chunk):
                self._tiers.keep_evicted(chunk, self._stored(gone))

    def used(self, chunks: Sequence[Chunk]) -> None:
        """Note that a request uses these chunks, wherever it found them."""
        self._tiers.touch([chunk.key for chunk in chunks])

    def drop(self, key: str) -> None:
        """Forget a chunk in the tiers, in one that leases it when that lease ends.

        Whoever computes it now, or asked for it before, does not store it again.
        """
        self._dropped.add(key)
        self._tiers.remove(key)

    def want_stored(self, chunk: Chunk) -> None:
        """The chunk is to be stored, though it was dropped before."""
        self._dropped.discard(chunk.key)

    def export(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        """The first tokens of these pages, [L, 2, n, G, D] on the host."""
        return self._runner.export_pages(pages, num_tokens)

    def keep_ranking(self, resident: Resident) -> None:
        """Keep a ranked resident's KV anew wherever it shall be, with its ranking."""
        chunk = resident.chunk
        if chunk.key not in self._dropped:
            self._tiers.remove(chunk.key)
            self._tiers.keep_surely(chunk, self._stored(resident), self._tiers.lacking(chunk))

    def _stored(self, held: Resident | Evicted) -> StoredKv:
        """What is in a chunk's pages, as the tiers keep it."""
        kv = self._runner.export_pages(held.pages, held.chunk.num_tokens)
        return to_stored(kv, self._tiers.stored_dtype, held.ranking)

"""Ended requests' own pages, kept for requests that begin as they did. Host bookkeeping alone.

A request's own are its recomputed tokens, its question and its answer. One that has the same
tokens computed at the same places, over the same chunks, would compute the same KV for them: up to
there it reads the kept pages, and copies the one in which they part.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from legokv.chunks.pool import ChunkCache, Grant, Reused
from legokv.link.link import BoundLink, Link, Placement
from legokv.link.policy import Indices
from legokv.model.dtypes import Int32

MAX_KEPT = 256
"""Most kept sequences: a request is compared with those of its namespace."""


@dataclass(frozen=True)
class Span:
    """One segment of a sequence: a chunk's by its key, of which `computed` are recomputed, or
    fresh tokens.
    """

    position: int
    token_ids: Int32
    key: str | None
    computed: Indices


@dataclass(frozen=True)
class OwnSequence:
    """What one request computes for itself, whose it is, and in which private pages it lies.

    `pages`: numbers among the private pages by the position of their first slot, with the number
    of positions each has.
    """

    namespace: str
    spans: tuple[Span, ...]
    pages: Mapping[int, tuple[int, int]]

    @property
    def num_positions(self) -> int:
        """Tokens of the whole sequence."""
        return self.spans[-1].position + len(self.spans[-1].token_ids)

    def followed_by(self, token_ids: Sequence[int]) -> "OwnSequence":
        """The same with an answer's tokens behind it, which are computed too."""
        last = self.spans[-1]
        ids = np.concatenate((last.token_ids, np.array(token_ids, np.int32)))
        return replace(self, spans=(*self.spans[:-1], replace(last, token_ids=ids)))

    def counts(self, num_positions: int) -> tuple[int, int]:
        """How many recomputed and fresh tokens of it stand before a position."""
        recomputed = fresh = 0
        for span in self.spans:
            if span.key is None:
                fresh += min(max(num_positions - span.position, 0), len(span.token_ids))
            elif span.position < num_positions:
                recomputed += len(span.computed)
        return recomputed, fresh

    def common_run(self, other: "OwnSequence") -> int:
        """Up to which position both compute the same."""
        position = 0
        for mine, theirs in zip(self.spans, other.spans, strict=False):
            position = mine.position
            if mine.key != theirs.key:
                return position
            if mine.key is None:
                length = _common_len(mine.token_ids, theirs.token_ids)
                position += length
                if length < max(len(mine.token_ids), len(theirs.token_ids)):
                    return position
            elif not (
                len(mine.token_ids) == len(theirs.token_ids)
                and np.array_equal(mine.computed, theirs.computed)
            ):
                return position
            else:
                position += len(mine.token_ids)
        return position


def own_sequence(placement: Placement, link: Link, namespace: str | None) -> OwnSequence | None:
    """What a link computes, by its segments; None without a namespace."""
    if namespace is None:
        return None
    spans = []
    for segment in placement.segments:
        start = segment.position
        first, end = np.searchsorted(link.positions, [start, start + len(segment.token_ids)])
        key = None if segment.chunk is None else segment.chunk.key
        computed = (link.positions[first:end] - start).astype(np.int64)
        spans.append(Span(start, segment.token_ids, key, computed))
    pages = {p.first_position: (p.private, p.filled) for p in link.pages if p.private is not None}
    return OwnSequence(namespace, tuple(spans), pages)


def copies_behind(bound: BoundLink, grant: Grant) -> dict[int, int]:
    """The pages to copy before a request begins, source by target: none over what is shared."""
    copies = dict(zip(bound.copy_targets, bound.copy_sources, strict=True))
    for page in grant.reused.shared.values():
        copies.pop(page, None)
    return copies | {grant.private_pages[n]: page for n, page in grant.reused.copied.items()}


@dataclass(frozen=True)
class Shared:
    """What a request has in common with a kept sequence: so many positions, in these pages."""

    key: str
    num_positions: int
    reused: Reused


@dataclass(frozen=True)
class _Kept:
    key: str
    sequence: OwnSequence
    page_of: Mapping[int, int]


class KeptSequences:
    """The sequences that a pool keeps beside its chunks: at most so many pages of them.

    Those least recently used leave first, with the chunks that room is made of. One namespace's
    are never looked at for another's. For the one thread that steps.
    """

    def __init__(self, cache: ChunkCache, max_pages: int) -> None:
        self._cache = cache
        self._max_pages = max_pages
        self._numbers = itertools.count()
        self._kept: dict[str, _Kept] = {}

    def put(self, sequence: OwnSequence | None, grant: Grant) -> None:
        """Keep the pages that an ended request has computed, before its grant is released."""
        dropped = any(resident.dropped for resident in grant.residents)
        if sequence is None or dropped or not self._max_pages:
            return
        for old in list(self._of(sequence.namespace)):
            common = old.sequence.common_run(sequence)
            if common == sequence.num_positions:
                self._touch(old.key)
                return
            if common == old.sequence.num_positions:
                self._remove(old.key)
        end = sequence.num_positions
        numbers = {at: number for at, (number, _) in sequence.pages.items() if at < end}
        page_of = {at: grant.private_pages[number] for at, number in numbers.items()}
        if not 0 < len(page_of) <= self._max_pages:
            return
        key = f"sequence {next(self._numbers)}"
        self._cache.keep_sequence(key, tuple(page_of.values()))
        self._kept[key] = _Kept(key, sequence, page_of)
        self._keep_to_budget()

    def shared_with(self, sequence: OwnSequence | None) -> Shared | None:
        """The longest run that a request has in common with a kept one; None if it is nothing."""
        if sequence is None or not self._max_pages:
            return None
        # The last token is computed in any case, for its logits.
        most = sequence.num_positions - 1
        runs = [
            (min(k.sequence.common_run(sequence), most), k) for k in self._of(sequence.namespace)
        ]
        if not runs:
            return None
        length, kept = max(runs, key=lambda run: run[0])
        if not sum(sequence.counts(length)):
            return None
        shared: dict[int, int] = {}
        copied: dict[int, int] = {}
        for at, (number, filled) in sequence.pages.items():
            if at < length:
                where = shared if at + filled <= length else copied
                where[number] = kept.page_of[at]
        return Shared(kept.key, length, Reused(shared, copied))

    def used(self, shared: Shared) -> None:
        """A request goes on from this one, if it is still kept."""
        if self._cache.find(shared.key) is not None:
            self._touch(shared.key)

    def drop(self, chunk_key: str) -> None:
        """Keep nothing that was computed over this chunk."""
        for kept in list(self._kept.values()):
            if any(span.key == chunk_key for span in kept.sequence.spans):
                self._remove(kept.key)

    def _of(self, namespace: str) -> Iterator[_Kept]:
        for kept in list(self._kept.values()):
            if self._cache.find(kept.key) is None:
                del self._kept[kept.key]
            elif kept.sequence.namespace == namespace:
                yield kept

    def _keep_to_budget(self) -> None:
        """By distinct pages: sequences that begin alike share theirs."""
        while True:
            present = [kept for kept in self._kept.values() if self._cache.find(kept.key)]
            pages = {page for kept in present for page in kept.page_of.values()}
            if len(pages) <= self._max_pages and len(present) <= MAX_KEPT:
                return
            self._remove(present[0].key)

    def _touch(self, key: str) -> None:
        self._cache.touch(key)
        self._kept[key] = self._kept.pop(key)

    def _remove(self, key: str) -> None:
        self._kept.pop(key, None)
        self._cache.drop(key)


def _common_len(a: Int32, b: Int32) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length

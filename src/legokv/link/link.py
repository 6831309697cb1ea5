"""Linking: segments placed one after another become tokens to compute and a page table.

A `Placement` is what is known before a policy chooses, a `Link` after. Page numbers are known in
neither: a link counts the pages it needs, `bind` fills the numbers in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from legokv.chunks.chunk import Chunk
from legokv.errors import InvalidRequest, RankingMissing
from legokv.link.drift import Drift, LinkDrift, drifting_documents
from legokv.link.policy import Indices, PlacedChunk, Policy, Scores, nothing
from legokv.model.dtypes import Int32

Segment = Chunk | Sequence[int] | Int32


class TablePage(NamedTuple):
    """One page a request sees: `page` of chunk number `chunk`, or private page number `private`.

    With both, the private page starts as a copy of the chunk's, since it is recomputed in part, or
    is written from it whole, since its document drifts.
    """

    base: int
    first_position: int
    filled: int
    chunk: int | None = None
    page: int | None = None
    private: int | None = None


@dataclass(frozen=True)
class Link:
    """What one prompt computes and reads; C computed tokens, ascending by position.

    token_ids, positions, key_positions int32 [C]; slots int32 [C] count from the first private
    page. `chunks` are those whose stored KV is read, each once. Tokens that follow the prompt go
    on in private page `tail_private`, whose slot 0 is position `tail_position`.
    """

    token_ids: Int32
    positions: Int32
    key_positions: Int32
    slots: Int32
    pages: tuple[TablePage, ...]
    chunks: tuple[Chunk, ...]
    num_private_pages: int
    tail_private: int
    tail_position: int
    prompt_tokens: int
    cached_tokens: int
    recomputed_tokens: int
    fresh_tokens: int
    drifts: tuple[LinkDrift, ...] = ()


@dataclass(frozen=True)
class BoundLink:
    """A link with page numbers: slots int32 [C], table int32 [P, 4], pages to copy beforehand."""

    slots: Int32
    table: Int32
    copy_sources: tuple[int, ...]
    copy_targets: tuple[int, ...]
    drifts: tuple[Drift, ...] = ()


@dataclass(frozen=True)
class PlacedSegment:
    """A segment at its position; a fresh one has no chunk."""

    position: int
    token_ids: Int32
    chunk: Chunk | None = None


@dataclass(frozen=True)
class Placement:
    """Segments at their places, with room for `reserve_tokens` more; the last is always fresh."""

    segments: tuple[PlacedSegment, ...]
    page_size: int
    reserve_tokens: int

    @property
    def chunks(self) -> list[PlacedChunk]:
        """What a policy chooses from."""
        return [
            PlacedChunk(
                segment.position,
                len(segment.token_ids),
                segment.chunk.start,
                self._continues(place),
            )
            for place, segment in enumerate(self.segments)
            if segment.chunk is not None
        ]

    def _continues(self, place: int) -> bool:
        """Whether the chunk there has before it what it was compiled behind."""
        segment = self.segments[place]
        assert segment.chunk is not None, "it is asked of chunks alone"
        behind = segment.chunk.behind
        if behind is None or not place:
            return False
        last = self.segments[place - 1]
        if last.chunk is not None:
            return last.chunk.key == behind.key
        # Fresh tokens are computed as they stand, and so was the chunk if it stood there.
        context = [token for chunk in segment.chunk.before for token in chunk.token_ids]
        return segment.position == segment.chunk.start and np.array_equal(
            np.concatenate([before.token_ids for before in self.segments[:place]]), context
        )

    @property
    def question_tokens(self) -> int:
        """How many tokens stand behind the last chunk: those whose attention tells what matters."""
        return len(self.segments[-1].token_ids)

    def scores_of(self, rankings: Mapping[str, Scores | None], mode: str) -> Scores:
        """Chunks' rankings, by key, where their tokens stand; 0 for what is not recomputed.

        RankingMissing if one that is needed is missing.
        """
        reused = [segment for segment in self.segments if segment.chunk is not None]
        self._check_rankings(reused, rankings, mode)
        scores = np.zeros(self.num_tokens, np.float32)
        for segment, placed in zip(reused, self.chunks, strict=True):
            assert segment.chunk is not None, "others are left out"
            if placed.is_exact:
                continue
            ranking = rankings[segment.chunk.key]
            assert ranking is not None, "it was looked for"
            end = segment.position + placed.num_tokens
            scores[segment.position : end] = ranking[: placed.num_tokens]
        return scores

    def _check_rankings(
        self,
        reused: Sequence[PlacedSegment],
        rankings: Mapping[str, Scores | None],
        mode: str,
    ) -> None:
        # By key: a chunk may stand in several places.
        missing: dict[str, tuple[int, Chunk]] = {}
        for number, (segment, placed) in enumerate(zip(reused, self.chunks, strict=True), 1):
            chunk = segment.chunk
            if chunk and not placed.is_exact and rankings[chunk.key] is None:
                missing.setdefault(chunk.key, (number, chunk))
        if missing:
            number, chunk = next(iter(missing.values()))
            num_others = len(missing) - 1
            others = f", nor have {num_others} others" if num_others > 1 else ""
            if num_others == 1:
                others = ", nor has 1 other"
            raise RankingMissing(
                f"mode '{mode}' needs the ranking of every chunk, and number {number} of "
                f"{len(reused)}, of {chunk.num_tokens} tokens, has none{others}: register its "
                "document with rank true, or call rank(chunk) in the library",
                list(missing),
            )

    @property
    def num_tokens(self) -> int:
        """Of the prompt."""
        last = self.segments[-1]
        return last.position + len(last.token_ids)

    def first_pass(self) -> Link:
        """What gives a policy its scores: all fresh tokens over the cached keys as they are."""
        return self.link(nothing)

    @property
    def most_private_pages(self) -> int:
        """Pages that any link of it needs at most: any page of a chunk may be recomputed in part,
        and then is private.
        """
        lengths = [len(segment.token_ids) for segment in self.segments]
        lengths[-1] += self.reserve_tokens
        return sum(-(-length // self.page_size) for length in lengths)

    def link(self, policy: Policy, scores: Scores | None = None) -> Link:
        """Recompute what `policy` chooses; it is given the first pass's scores if it needs them."""
        if policy.needs_scores and scores is None:
            raise ValueError("the policy needs the scores of a first pass, there are none")
        placed = self.chunks
        chosen = policy.choose(placed, scores)
        drifting = drifting_documents(placed, chosen) if policy.drift else [None] * len(placed)
        choices = iter(zip(chosen, drifting, strict=True))
        layout = _Layout(self.page_size)
        *before, last = self.segments
        for segment in before:
            if segment.chunk is not None:
                layout.add_chunk(segment, segment.chunk, *next(choices))
            else:
                layout.add_fresh(segment, 0)
        layout.add_fresh(last, self.reserve_tokens)
        return layout.link()


def link(
    segments: Sequence[Segment], policy: Policy, page_size: int, reserve_tokens: int = 0
) -> Link:
    """Place `segments` and recompute what `policy` says, which looks at their places alone."""
    return place(segments, page_size, reserve_tokens).link(policy)


def place(segments: Sequence[Segment], page_size: int, reserve_tokens: int = 0) -> Placement:
    """Put `segments` one after another, leaving room for `reserve_tokens` more.

    The last token is always computed, for its logits: where a chunk stands last, its last token
    counts as fresh. InvalidRequest if there is no token at all.
    """
    return Placement(tuple(_place(segments)), page_size, reserve_tokens)


def _place(segments: Sequence[Segment]) -> list[PlacedSegment]:
    """Positions for all segments, neighbouring fresh ones joined, a fresh one at the end."""
    placed: list[PlacedSegment] = []
    position = 0
    for segment in _with_fresh_end(segments):
        chunk = segment if isinstance(segment, _Reused) else None
        ids = chunk.token_ids if chunk is not None else np.asarray(segment, np.int32)
        if not len(ids):
            continue
        if chunk is None and placed and placed[-1].chunk is None:
            before = placed.pop()
            ids = np.concatenate((before.token_ids, ids))
            position = before.position
        placed.append(PlacedSegment(position, ids, chunk.chunk if chunk is not None else None))
        position += len(ids)
    if not placed:
        raise InvalidRequest("the prompt has 0 tokens; it needs at least one")
    return placed


@dataclass(frozen=True)
class _Reused:
    """A chunk and those of its tokens that are used: all, or all but the last."""

    chunk: Chunk
    token_ids: Int32


def _with_fresh_end(segments: Sequence[Segment]) -> list["_Reused | Int32"]:
    parts: list[_Reused | Int32] = [
        _Reused(segment, np.array(segment.token_ids, np.int32))
        if isinstance(segment, Chunk)
        else np.asarray(segment, np.int32)
        for segment in segments
    ]
    while parts and not isinstance(parts[-1], _Reused) and not len(parts[-1]):
        parts.pop()
    last = parts[-1] if parts else None
    if isinstance(last, _Reused):
        parts[-1:] = [_Reused(last.chunk, last.token_ids[:-1]), last.token_ids[-1:]]
    return parts


class _Layout:
    """Grows a link segment by segment; private pages are numbered as they are needed."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._computed: list[tuple[Int32, Int32, Int32, Int32]] = []
        self._pages: list[TablePage] = []
        self._chunks: dict[str, tuple[int, Chunk]] = {}
        self._num_private = 0
        self._tail = (0, 0)
        self._counts = [0, 0, 0]
        self._drifts: dict[int, LinkDrift] = {}

    def add_chunk(
        self, segment: PlacedSegment, chunk: Chunk, recompute: Indices, drifting: int | None
    ) -> None:
        """A chunk, `recompute` of it anew; the whole document `drifting`, if it has that number."""
        length, size = len(segment.token_ids), self._page_size
        base = segment.position - chunk.start
        num_pages = -(-length // size)
        is_read = len(recompute) < length or drifting is not None
        number = self._number_of(chunk) if is_read else None
        computed_in = np.bincount(recompute // size, minlength=num_pages)
        private: list[int] = []
        for page, num_computed in enumerate(computed_in.tolist()):
            filled = min(size, length - page * size)
            owned = num_computed > 0 or drifting is not None
            shared = num_computed < filled or drifting is not None
            private.append(self._take_private() if owned else -1)
            self._pages.append(
                TablePage(
                    base=base,
                    first_position=segment.position + page * size,
                    filled=filled,
                    chunk=number if shared else None,
                    page=page if shared else None,
                    private=private[page] if owned else None,
                )
            )
        if drifting is not None:
            self._add_drift(drifting, chunk.start, recompute, num_pages)
        self._compute(
            segment.token_ids[recompute],
            segment.position + recompute,
            base,
            np.array(private, np.int64)[recompute // size] * size + recompute % size,
        )
        self._counts[0] += length - len(recompute)
        self._counts[1] += len(recompute)

    def add_fresh(self, segment: PlacedSegment, reserve_tokens: int) -> None:
        length, size = len(segment.token_ids), self._page_size
        self._tail = (self._num_private, segment.position)
        for start in range(0, length + reserve_tokens, size):
            filled = min(size, length + reserve_tokens - start)
            page = TablePage(0, segment.position + start, filled, private=self._take_private())
            self._pages.append(page)
        index = np.arange(length)
        self._compute(segment.token_ids, segment.position + index, 0, self._tail[0] * size + index)
        self._counts[2] += length

    def _add_drift(self, document: int, start: int, recompute: Indices, num_pages: int) -> None:
        """The last pages so far are a drifting document's; `recompute` of it is computed next."""
        first_row = sum(len(part[0]) for part in self._computed)
        drift = self._drifts.setdefault(document, LinkDrift(first_row, [], []))
        before, size = len(drift.pages), self._page_size
        drift.stored.extend((before + n // size, n % size) for n in recompute.tolist())
        first = len(self._pages) - num_pages
        drift.pages.extend((first + page, start + page * size) for page in range(num_pages))

    def _take_private(self) -> int:
        self._num_private += 1
        return self._num_private - 1

    def _number_of(self, chunk: Chunk) -> int:
        return self._chunks.setdefault(chunk.key, (len(self._chunks), chunk))[0]

    def _compute(self, ids: Int32, positions: Indices, base: int, slots: ArrayLike) -> None:
        keys = positions - base
        arrays = [np.asarray(a).astype(np.int32) for a in (ids, positions, keys, slots)]
        self._computed.append((arrays[0], arrays[1], arrays[2], arrays[3]))

    def link(self) -> Link:
        ids, positions, keys, slots = (
            np.concatenate(parts) for parts in zip(*self._computed, strict=True)
        )
        cached, recomputed, fresh = self._counts
        return Link(
            token_ids=ids,
            positions=positions,
            key_positions=keys,
            slots=slots,
            pages=tuple(self._pages),
            chunks=tuple(chunk for _, chunk in self._chunks.values()),
            num_private_pages=self._num_private,
            tail_private=self._tail[0],
            tail_position=self._tail[1],
            prompt_tokens=sum(self._counts),
            cached_tokens=cached,
            recomputed_tokens=recomputed,
            fresh_tokens=fresh,
            drifts=tuple(self._drifts.values()),
        )


def bind(
    link: Link,
    chunk_pages: Sequence[Sequence[int]],
    private_pages: Sequence[int],
    page_size: int,
) -> BoundLink:
    """Give a link its page numbers: those of each of its `chunks`, and its private ones."""
    table, sources, targets = [], [], []
    stored_pages: list[int | None] = []
    # What drifts is written whole, not copied.
    written = {page for drift in link.drifts for page, _ in drift.pages}
    for place, row in enumerate(link.pages):
        stored = None
        if row.chunk is not None and row.page is not None:
            stored = chunk_pages[row.chunk][row.page]
        number = stored if row.private is None else private_pages[row.private]
        assert number is not None, "a table page is a chunk's, private, or both"
        stored_pages.append(stored)
        if stored is not None and row.private is not None and place not in written:
            sources.append(stored)
            targets.append(number)
        table.append((number, row.base, row.first_position, row.filled))
    private = np.asarray(private_pages, np.int32)
    slots = private[link.slots // page_size] * page_size + link.slots % page_size
    own = [row[0] for row in table]
    drifts = tuple(drift.bind(stored_pages, own, page_size) for drift in link.drifts)
    return BoundLink(slots, np.array(table, np.int32), tuple(sources), tuple(targets), drifts)

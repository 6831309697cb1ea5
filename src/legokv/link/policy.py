"""Which cached tokens a request recomputes: the one choice that tells reuse methods apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]
"""[prompt tokens], by absolute position: what a first pass found each token to matter."""


@dataclass(frozen=True)
class PlacedChunk:
    """A chunk's place in one request: position of its first token, and how many it holds.

    start: its first token's position when it was compiled.
    continues: what stands before it is what it was compiled behind, so it begins no seam.
    """

    position: int
    num_tokens: int
    start: int = 0
    continues: bool = False

    @property
    def end(self) -> int:
        """Position of the token behind it."""
        return self.position + self.num_tokens

    @property
    def is_exact(self) -> bool:
        """Whether it stands as it was compiled, from the prompt's first token on."""
        return self.position == self.start and (self.continues or not self.start)


class Policy(Protocol):
    """Chooses when a request has its pages; with `needs_scores` after a first pass.

    The first pass recomputes nothing: it runs the fresh tokens over all keys as they are cached.
    """

    @property
    def needs_scores(self) -> bool: ...

    @property
    def drift(self) -> bool:
        """Whether a document's other tokens move as those did on the mean that are recomputed."""

    def choose(
        self, chunks: Sequence[PlacedChunk], scores: Scores | None = None
    ) -> Sequence[Indices]:
        """For each placed chunk the indices inside it, ascending, of the tokens to recompute."""


@dataclass(frozen=True)
class ByPlace:
    """A policy that looks at the chunks' places alone; `recompute` is its `choose`."""

    recompute: Callable[[Sequence[PlacedChunk]], Sequence[Indices]]
    needs_scores: ClassVar[bool] = False
    drift: ClassVar[bool] = False

    def choose(
        self, chunks: Sequence[PlacedChunk], scores: Scores | None = None
    ) -> Sequence[Indices]:
        return self.recompute(chunks)


@dataclass(frozen=True)
class Share:
    """A percentage of each document's tokens, rounded to the nearest number of tokens."""

    percent: float


Budget = int | Share
"""How many tokens of each document are recomputed, or which share of it."""


def legolink(budget: Budget) -> Policy:
    """EPIC's LegoLink-k: the first tokens behind each seam.

    A chunk at position 0 was compiled exactly as it stands (arXiv 2410.15332, section 4). Where a
    document's chunks were compiled behind one another, its beginning is its one seam.
    """
    return _behind_seams(lambda num_tokens: np.arange(_number(budget, num_tokens)))


def spread(budget: Budget) -> Policy:
    """As many tokens as LegoLink's, evenly over the document: its first, and so on to its end."""

    return _behind_seams(lambda num_tokens: _evenly(_number(budget, num_tokens), num_tokens))


@dataclass(frozen=True)
class ByScores:
    """As many tokens as LegoLink's in all, those with the highest scores wherever they stand.

    The scores are the attention that the question pays to each (the idea of ProphetKV, arXiv
    2602.02579), the chunks' rankings, or both multiplied. What stands as it was compiled is never
    recomputed. `num_probes` of each document's tokens are chosen evenly over it whatever their
    scores, fewer where the document has a smaller number.
    """

    budget: Budget
    num_probes: int = 0
    drift: bool = False
    needs_scores: ClassVar[bool] = True

    def choose(
        self, chunks: Sequence[PlacedChunk], scores: Scores | None = None
    ) -> Sequence[Indices]:
        assert scores is not None, "a link gives scores to those that need them"
        lengths = {
            run[0].position: sum(chunk.num_tokens for chunk in run)
            for run in _runs(chunks)
            if not run[0].is_exact
        }
        number = sum(_number(self.budget, length) for length in lengths.values())
        spans = [start + np.arange(length) for start, length in lengths.items()]
        spread_ones = [
            start + _evenly(min(self.num_probes, _number(self.budget, length)), length)
            for start, length in lengths.items()
        ]
        places = np.concatenate([*spans, np.arange(0)])
        probes = np.concatenate([*spread_ones, np.arange(0)])
        places = np.setdiff1d(places, probes)
        # Stable: of tokens with one score the earlier is taken.
        best = places[np.argsort(-scores[places], kind="stable")[: number - len(probes)]]
        best = np.sort(np.concatenate([probes, best]))
        return [
            best[(best >= c.position) & (best < c.position + c.num_tokens)] - c.position
            for c in chunks
        ]


def documents(chunks: Sequence[PlacedChunk]) -> list[int]:
    """For each chunk the number of its document: chunks that continue another's are of its."""
    return [number for number, run in enumerate(_runs(chunks)) for _ in run]


def _evenly(number: int, num_tokens: int) -> Indices:
    """So many indices below `num_tokens`, the first 0."""
    return np.arange(number) * num_tokens // max(number, 1)


def _number(budget: Budget, num_tokens: int) -> int:
    """The number for a document of so many tokens."""
    if isinstance(budget, Share):
        return round(num_tokens * budget.percent / 100)
    return min(budget, num_tokens)


def _behind_seams(choose: Callable[[int], Indices]) -> Policy:
    """What `choose` picks of so many tokens, of all chunks from one seam to the next together."""

    def recompute(chunks: Sequence[PlacedChunk]) -> list[Indices]:
        chosen: list[Indices] = []
        for run in _runs(chunks):
            lengths = [chunk.num_tokens for chunk in run]
            picked = np.arange(0) if run[0].is_exact else choose(sum(lengths))
            ends = np.cumsum(lengths)
            for start, end in zip(ends - lengths, ends, strict=True):
                chosen.append(picked[(picked >= start) & (picked < end)] - start)
        return chosen

    return ByPlace(recompute)


def _runs(chunks: Sequence[PlacedChunk]) -> list[list[PlacedChunk]]:
    """The chunks, each with those that continue it."""
    runs: list[list[PlacedChunk]] = []
    for chunk in chunks:
        # What continues a chunk with fresh tokens between stands as it was compiled.
        if chunk.continues and runs and runs[-1][-1].end == chunk.position:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    return runs


nothing: Policy = ByPlace(lambda chunks: [np.arange(0) for _ in chunks])
"""Link as stored: naive reuse, and LegoLink-0 over chunks compiled behind dummy tokens."""

everything: Policy = ByPlace(lambda chunks: [np.arange(chunk.num_tokens) for chunk in chunks])
"""Full recompute: what ordinary prefill without a cache does."""

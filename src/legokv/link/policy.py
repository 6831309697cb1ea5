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
    """A chunk's place in one request: position of its first token, and how many it holds."""

    position: int
    num_tokens: int


class Policy(Protocol):
    """Chooses when a request has its pages; with `needs_scores` after a first pass.

    The first pass recomputes nothing: it runs the fresh tokens over all keys as they are cached.
    """

    @property
    def needs_scores(self) -> bool: ...

    def choose(
        self, chunks: Sequence[PlacedChunk], scores: Scores | None = None
    ) -> Sequence[Indices]:
        """For each placed chunk the indices inside it, ascending, of the tokens to recompute."""


@dataclass(frozen=True)
class ByPlace:
    """A policy that looks at the chunks' places alone; `recompute` is its `choose`."""

    recompute: Callable[[Sequence[PlacedChunk]], Sequence[Indices]]
    needs_scores: ClassVar[bool] = False

    def choose(
        self, chunks: Sequence[PlacedChunk], scores: Scores | None = None
    ) -> Sequence[Indices]:
        return self.recompute(chunks)


def legolink(link_tokens: int) -> Policy:
    """EPIC's LegoLink-k: the first k tokens of each chunk but one that stands first.

    A chunk at position 0 was compiled exactly as it stands (arXiv 2410.15332, section 4).
    """

    def recompute(chunks: Sequence[PlacedChunk]) -> list[Indices]:
        return [
            np.arange(min(link_tokens, chunk.num_tokens) if chunk.position > 0 else 0)
            for chunk in chunks
        ]

    return ByPlace(recompute)


nothing: Policy = ByPlace(lambda chunks: [np.arange(0) for _ in chunks])
"""Link as stored: naive reuse, and LegoLink-0 over chunks compiled behind dummy tokens."""

everything: Policy = ByPlace(lambda chunks: [np.arange(chunk.num_tokens) for chunk in chunks])
"""Full recompute: what ordinary prefill without a cache does."""

"""Which cached tokens each method recomputes, as policies.

A chunk at position 0 stands as it was compiled, and no method recomputes it (but `full`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from legokv.link.policy import ByPlace, Indices, PlacedChunk, Policy, Scores


def last(num_tokens: int) -> Policy:
    """The control at LegoLink's budget: the last tokens of each chunk but one that stands first."""

    def recompute(chunks: Sequence[PlacedChunk]) -> list[Indices]:
        return [
            np.arange(max(chunk.num_tokens - num_tokens, 0), chunk.num_tokens)
            if chunk.position
            else np.arange(0)
            for chunk in chunks
        ]

    return ByPlace(recompute)


def scattered(num_tokens: int, seed: int = 0) -> Policy:
    """The control at LegoLink's budget: as many tokens of each chunk, drawn at random."""

    def recompute(chunks: Sequence[PlacedChunk]) -> list[Indices]:
        dice = np.random.Generator(np.random.PCG64(seed))
        return [
            np.sort(dice.choice(chunk.num_tokens, min(num_tokens, chunk.num_tokens), replace=False))
            if chunk.position
            else np.arange(0)
            for chunk in chunks
        ]

    return ByPlace(recompute)


prefix: Policy = ByPlace(
    lambda chunks: [np.arange(chunk.num_tokens if chunk.position else 0) for chunk in chunks]
)
"""Prefix caching: what stands first is reused, the rest comes in a new order and is not."""


@dataclass(frozen=True)
class Best:
    """The `percent` % of tokens with the highest scores.

    The share is of the tokens that may be recomputed, rounded to the nearest number of tokens.
    """

    percent: float
    drift: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True

    def choose(self, chunks: Sequence[PlacedChunk], scores: Scores | None = None) -> list[Indices]:
        assert scores is not None, "a link gives scores to those that need them"
        places = [
            np.arange(c.position, c.position + (c.num_tokens if c.position else 0)) for c in chunks
        ]
        candidates = np.concatenate([*places, np.arange(0)])
        budget = round(len(candidates) * self.percent / 100)
        chosen = candidates[np.argsort(-scores[candidates], kind="stable")[:budget]]
        return [
            np.sort(chosen[(chosen >= c.position) & (chosen < c.position + c.num_tokens)])
            - c.position
            for c in chunks
        ]


@dataclass(frozen=True)
class Both:
    """What either recomputes."""

    first: Policy
    second: Policy
    drift: ClassVar[bool] = False

    @property
    def needs_scores(self) -> bool:
        return self.first.needs_scores or self.second.needs_scores

    def choose(self, chunks: Sequence[PlacedChunk], scores: Scores | None = None) -> list[Indices]:
        pairs = zip(
            self.first.choose(chunks, scores), self.second.choose(chunks, scores), strict=True
        )
        return [np.union1d(one, other).astype(np.int64) for one, other in pairs]

"""Which cached tokens each method recomputes, as policies.

A chunk at position 0 stands as it was compiled, and no method recomputes it (but `full`).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from legokv.link.policy import PlacedChunk, Policy

Indices = NDArray[np.int64]


def last(num_tokens: int) -> Policy:
    """The control at LegoLink's budget: the last tokens of each chunk but one that stands first."""

    def recompute(chunks: Sequence[PlacedChunk]) -> list[Indices]:
        return [
            np.arange(max(chunk.num_tokens - num_tokens, 0), chunk.num_tokens)
            if chunk.position
            else np.arange(0)
            for chunk in chunks
        ]

    return recompute


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

    return recompute


def prefix(chunks: Sequence[PlacedChunk]) -> list[Indices]:
    """Prefix caching: what stands first is reused, the rest comes in a new order and is not."""
    return [np.arange(chunk.num_tokens if chunk.position else 0) for chunk in chunks]


def best(scores: NDArray[np.float32], percent: float) -> Policy:
    """The `percent` % of tokens with the highest score [prompt tokens], by absolute position.

    The share is of the tokens that may be recomputed, rounded to the nearest number of tokens.
    """

    def recompute(chunks: Sequence[PlacedChunk]) -> list[Indices]:
        places = [
            np.arange(c.position, c.position + (c.num_tokens if c.position else 0)) for c in chunks
        ]
        candidates = np.concatenate([*places, np.arange(0)])
        budget = round(len(candidates) * percent / 100)
        chosen = candidates[np.argsort(-scores[candidates], kind="stable")[:budget]]
        return [
            np.sort(chosen[(chosen >= c.position) & (chosen < c.position + c.num_tokens)])
            - c.position
            for c in chunks
        ]

    return recompute


def both(first: Policy, second: Policy) -> Policy:
    """What either recomputes."""

    def recompute(chunks: Sequence[PlacedChunk]) -> list[Indices]:
        pairs = zip(first(chunks), second(chunks), strict=True)
        return [np.union1d(one, other).astype(np.int64) for one, other in pairs]

    return recompute

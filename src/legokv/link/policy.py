"""Which cached tokens a request recomputes: the one choice that tells reuse methods apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PlacedChunk:
    """A chunk's place in one request: position of its first token, and how many it holds."""

    position: int
    num_tokens: int


Policy = Callable[[Sequence[PlacedChunk]], list[NDArray[np.int64]]]
"""For each placed chunk the indices inside it, ascending, of the tokens to recompute."""


def legolink(link_tokens: int) -> Policy:
    """EPIC's LegoLink-k: the first k tokens of each chunk but one that stands first.

    A chunk at position 0 was compiled exactly as it stands (arXiv 2410.15332, section 4).
    """

    def recompute(chunks: Sequence[PlacedChunk]) -> list[NDArray[np.int64]]:
        return [
            np.arange(min(link_tokens, chunk.num_tokens) if chunk.position > 0 else 0)
            for chunk in chunks
        ]

    return recompute


def nothing(chunks: Sequence[PlacedChunk]) -> list[NDArray[np.int64]]:
    """Link as stored: naive reuse, and LegoLink-0 over chunks compiled behind dummy tokens."""
    return [np.arange(0) for _ in chunks]


def everything(chunks: Sequence[PlacedChunk]) -> list[NDArray[np.int64]]:
    """Full recompute: what ordinary prefill without a cache does."""
    return [np.arange(chunk.num_tokens) for chunk in chunks]

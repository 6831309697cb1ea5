"""Choosing the next token from logits. Host arithmetic on one row; no state outside the sampler."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legokv.errors import InvalidRequest


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn; InvalidRequest for a value out of range.

    temperature 0 is greedy. top_k 0 and top_p 1.0 keep every token. Without a seed one is drawn.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidRequest(f"temperature is finite and 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise InvalidRequest(f"top_k is 0 (all tokens) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p is above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and self.seed < 0:
            raise InvalidRequest(f"seed is 0 or more, not {self.seed}")


class Sampler:
    """Draws one request's tokens; the same seed and logits give the same tokens."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def next(self, logits: NDArray[np.float32]) -> int:
        """A token id drawn from `logits` float32 [V]."""
        if self._options.temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self._options.temperature
        candidates = _candidates(scaled, self._options)
        weights = np.exp(scaled[candidates] - scaled[candidates[0]])
        return int(self._random.choice(candidates, p=weights / weights.sum()))


def _candidates(logits: NDArray[np.float64], options: SamplingOptions) -> NDArray[np.int64]:
    """Ids that may be drawn, most likely first: the top k, of those the smallest set with top p."""
    order = np.argsort(-logits, kind="stable")
    if options.top_k:
        order = order[: options.top_k]
    if options.top_p < 1:
        weights = np.exp(logits[order] - logits[order[0]])
        before = np.cumsum(weights) - weights
        order = order[before < options.top_p * weights.sum()]
    return order

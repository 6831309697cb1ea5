"""Logits lowered for tokens that were there before. Host arithmetic on one row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class PenaltyFactors:
    """repetition 1 and frequency and presence 0 change nothing."""

    repetition: float
    frequency: float
    presence: float

    @property
    def change_nothing(self) -> bool:
        return (self.repetition, self.frequency, self.presence) == (1, 0, 0)


class Penalties:
    """What one answer's prompt and tokens so far take from the next logits.

    repetition, for a token of the prompt or the answer (CTRL, arXiv 1909.05858, as Hugging Face
    transformers applies it to either sign): a logit above 0 is divided by it, another multiplied.
    frequency and presence, for a token of the answer (the OpenAI API's definition): frequency times
    how often it came, and presence once, are subtracted.
    """

    def __init__(self, factors: PenaltyFactors, prompt_ids: Sequence[int]) -> None:
        self._factors = factors
        self._prompt_ids = np.unique(np.asarray(prompt_ids, np.int64))
        self._counts: dict[int, int] = {}

    def count(self, token_id: int) -> None:
        """The answer goes on with `token_id`."""
        self._counts[token_id] = self._counts.get(token_id, 0) + 1

    def lowered(self, logits: Logits) -> Logits:
        """`logits` [V] after repetition, then frequency, then presence; itself if they do nothing.

        The given array is not written to.
        """
        if self._factors.change_nothing:
            return logits
        ids = np.fromiter(self._counts, np.int64, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float64, len(self._counts))
        changed = logits.astype(np.float64)
        seen = np.union1d(self._prompt_ids, ids)
        before, repetition = changed[seen], self._factors.repetition
        changed[seen] = np.where(before > 0, before / repetition, before * repetition)
        changed[ids] -= self._factors.frequency * counts + self._factors.presence
        return changed

"""Log-probabilities of drawn tokens, from the model's own logits. Host arithmetic on one row."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legokv.engine.sampling import largest


@dataclass(frozen=True)
class TokenLogProbs:
    """The drawn token's log-probability, and (id, log-probability) of the likeliest ones."""

    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


def token_log_probs(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogProbs:
    """Natural logarithms of softmax(`logits` float32 [V]), before any penalty or temperature.

    The `num_top` likeliest come likeliest first, of equal ones the lowest id first.
    """
    exact = logits.astype(np.float64)
    most = exact.max()
    log_probs = exact - (most + np.log(np.exp(exact - most).sum()))
    ids = largest(logits, num_top) if num_top else np.array([], np.int64)
    order = ids[np.argsort(-log_probs[ids], kind="stable")]
    top = tuple((int(place), float(log_probs[place])) for place in order)
    return TokenLogProbs(float(log_probs[token_id]), top)

"""Token ids without a text: the same for the same seed."""

import numpy as np

VOCABULARY = 384
"""Of the tiny checkpoints; their first 3 tokens are special."""


def random_ids(seed: int, length: int = 40, vocabulary: int = VOCABULARY) -> list[int]:
    """`length` ids from 3 on, below `vocabulary`."""
    dice = np.random.Generator(np.random.PCG64(seed))
    return [int(token_id) for token_id in dice.integers(3, vocabulary, length)]

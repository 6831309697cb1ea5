"""Means over cases with bootstrap intervals; differences of methods are paired by case."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % bootstrap interval around it."""

    mean: float
    low: float
    high: float
    num_cases: int


def mean_interval(values: Sequence[float], draws: int = 4000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean: cases are drawn again, as many, with replacement.

    For a paired comparison give the differences case by case. ValueError without a case.
    """
    if not values:
        raise ValueError("0 cases have no mean: measure at least one")
    array = np.asarray(values, np.float64)
    dice = np.random.Generator(np.random.PCG64(seed))
    means = array[dice.integers(0, len(array), (draws, len(array)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(array.mean()), float(low), float(high), len(array))

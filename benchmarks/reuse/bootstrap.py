"""Means over cases with bootstrap intervals; differences of methods are paired by case."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
    means = array[_drawn(len(array), draws, seed)].mean(1)
    return _interval(float(array.mean()), means, len(array))


def closed_interval(
    left: Sequence[float], all_of_it: Sequence[float], draws: int = 4000, seed: int = 0
) -> Interval:
    """How much of a gap is closed: 1 - what is left over all of it, each summed over cases.

    Both have a number a case; a case is drawn with both. A draw of cases that have no gap says
    nothing and is left out. ValueError without a case or a gap.
    """
    if not sum(all_of_it):
        raise ValueError(f"{len(all_of_it)} cases have no gap to close")
    pairs = np.stack([np.asarray(left, np.float64), np.asarray(all_of_it, np.float64)])
    sums = pairs[:, _drawn(pairs.shape[1], draws, seed)].sum(2)
    sums = sums[:, sums[1] != 0]
    left_sum, gap_sum = pairs.sum(1)
    return _interval(float(1 - left_sum / gap_sum), 1 - sums[0] / sums[1], pairs.shape[1])


def _drawn(num_cases: int, draws: int, seed: int) -> npt.NDArray[np.int64]:
    dice = np.random.Generator(np.random.PCG64(seed))
    return dice.integers(0, num_cases, (draws, num_cases))


def _interval(mean: float, drawn: npt.NDArray[np.float64], num_cases: int) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(mean, float(low), float(high), num_cases)

"""Medians, percentiles and bootstrap intervals, each over plain lists of numbers."""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A median with the least and the greatest of `count` values."""

    median: float
    low: float
    high: float
    count: int

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """ValueError where there are no values: a median of nothing is no number."""
    if not values:
        raise ValueError("0 values have no median")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` % of the values do not exceed, by linear interpolation."""
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values: needs 0 to 100 of some")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def bootstrap_interval(
    cases: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The middle 95 % of `statistic` over cases drawn again with replacement.

    A case may be a pair, so that what was measured together is drawn together.
    """
    dice = random.Random(seed)
    drawn = [statistic(dice.choices(cases, k=len(cases))) for _ in range(draws)]
    return percentile(drawn, 2.5), percentile(drawn, 97.5)


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Median of the firsts over median of the seconds."""
    return statistics.median(p[0] for p in pairs) / statistics.median(p[1] for p in pairs)

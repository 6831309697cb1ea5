"""The highest request rate a server sustains within a bound, by bisection on a log scale."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Probe = Callable[[float], float]
"""From requests a second to the p90 time to first token."""


@dataclass(frozen=True)
class RateRange:
    """The rate that held the bound and the next one tried, which did not."""

    held: float
    broke: float


def highest_rate(
    probe: Probe, bound_seconds: float, known: RateRange, num_probes: int
) -> RateRange:
    """Double or halve from what is `known` until the bound is between two rates, then bisect.

    `held` is 0 where no probed rate held the bound, `broke` infinite where all did.
    """
    held, broke = known.held, known.broke
    for _ in range(num_probes):
        rate = _next(held, broke)
        if probe(rate) <= bound_seconds:
            held = rate
        else:
            broke = rate
    return RateRange(held, broke)


def _next(held: float, broke: float) -> float:
    if math.isinf(broke):
        return held * 2 or 1.0
    if held == 0.0:
        return broke / 2
    return math.sqrt(held * broke)

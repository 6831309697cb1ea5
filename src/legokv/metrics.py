"""Numbers of a running process under the names they are published by. No Triton, no engine here."""

import threading
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Kind = Literal["counter", "gauge"]
Labels = tuple[tuple[str, str], ...]

# From a token of a small model to a long prompt on a busy machine.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True)
class Family:
    """A metric's name and what it tells; its labels' values tell its series apart."""

    name: str
    kind: Kind
    meaning: str


@dataclass(frozen=True)
class Sample:
    """One series' value now. A counter's is what was counted since the process began."""

    family: Family
    labels: Labels
    value: float


class Histogram:
    """Seconds observed since the process began, counted up to each of SECONDS. For any thread."""

    def __init__(self, name: str, meaning: str, labels: Labels = ()) -> None:
        self._labels = labels
        self._buckets, self._sum, self._count = (
            Family(f"{name}_{part}", "counter", meaning) for part in ("bucket", "sum", "count")
        )
        self._lock = threading.Lock()
        self._counts = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        place = bisect_left(SECONDS, seconds)
        with self._lock:
            self._counts[place] += 1
            self._seconds += seconds

    def samples(self) -> Iterator[Sample]:
        """The series Prometheus knows a histogram by: buckets, each with all below it, and totals.

        As counters, which are published together: a histogram of Triton's own takes a message
        between processes for every value observed.
        """
        with self._lock:
            counts, seconds = list(accumulate(self._counts)), self._seconds
        for bound, count in zip((*(f"{s:g}" for s in SECONDS), "+Inf"), counts, strict=True):
            yield Sample(self._buckets, (*self._labels, ("le", bound)), count)
        yield Sample(self._sum, self._labels, seconds)
        yield Sample(self._count, self._labels, counts[-1])

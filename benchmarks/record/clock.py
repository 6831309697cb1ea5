"""How much time a benchmark may take, and how long one call took."""

import time
from collections.abc import Callable


class TimeLimit:
    """A number of minutes from now; `over` says whether they have passed."""

    def __init__(self, minutes: float) -> None:
        self._ends_at = time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._ends_at

    @property
    def left_seconds(self) -> float:
        return max(self._ends_at - time.monotonic(), 0.0)


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started

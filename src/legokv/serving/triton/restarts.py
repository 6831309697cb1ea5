"""How often, and after how long, a server that was lost is started again. No process here."""

import time
from collections.abc import Callable

RESTART_TRIES = 3
"""Failed starts in a row that a server which was ready once gets over."""
MAX_LOSSES = 10
"""So many losses within LOSSES_SECONDS of servers that were ready end it."""
LOSSES_SECONDS = 600.0
_LONGEST_WAIT = 60.0


class Restarts:
    """Counts what was lost. The first loss is made good at once, each further one later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tries_left = 0
        self._losses: list[float] = []

    def was_ready(self) -> None:
        """A start has succeeded."""
        self._tries_left = RESTART_TRIES

    def seconds_to_wait(self, *, ready: bool) -> float | None:
        """After the loss of a server that was `ready`, or failed to start; None: no more tries."""
        now = self._clock()
        self._losses = [then for then in self._losses if now - then < LOSSES_SECONDS] + [now]
        if not ready:
            if not self._tries_left:
                return None
            self._tries_left -= 1
        if len(self._losses) > MAX_LOSSES:
            return None
        doublings = len(self._losses) - 2
        return min(_LONGEST_WAIT, 2.0**doublings) if doublings >= 0 else 0.0

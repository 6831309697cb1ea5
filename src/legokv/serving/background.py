"""A few threads that work through jobs nobody waits for, in the order they came."""

import logging
import queue
import threading
from collections.abc import Callable

Job = Callable[[], object]

log = logging.getLogger(__name__)


class Background:
    """At most `num_threads` jobs at a time, the others wait; none keeps the process alive."""

    def __init__(self, num_threads: int) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for _ in range(num_threads):
            threading.Thread(target=self._work, name="background", daemon=True).start()

    def __call__(self, job: Job) -> None:
        """Have `job` run later; what it raises goes to the log."""
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception:
                # The thread's boundary: the next job is not this one's.
                log.exception("a job in the background failed")

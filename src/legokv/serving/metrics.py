"""Hands a process's numbers on while it runs: all at first, then those that changed. No Triton."""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from legokv.metrics import Sample

PUBLISH_SECONDS = 0.5

log = logging.getLogger(__name__)


class Board(Protocol):
    """Where numbers are shown."""

    def show(self, sample: Sample, change: float) -> None:
        """Show the sample's value, which is its series' last one and `change`, or 0 and that."""


class Publisher:
    """Shows samples from its making to `close`, from a thread of its own after the first time."""

    def __init__(self, samples: Callable[[], Iterable[Sample]], board: Board) -> None:
        self._samples = samples
        self._board = board
        self._shown: dict[tuple[str, object], float] = {}
        self._closed = threading.Event()
        # Here, so that whoever asks a server that is ready finds every series.
        self._publish()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show nothing any more."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(PUBLISH_SECONDS):
            try:
                self._publish()
            except Exception:
                # The thread's boundary: numbers that come late are better than none from now on.
                log.exception("the metrics could not be published; tried again")

    def _publish(self) -> None:
        for sample in self._samples():
            series = (sample.family.name, sample.labels)
            before = self._shown.get(series)
            if sample.value != before:
                self._board.show(sample, sample.value - (before or 0))
                self._shown[series] = sample.value

"""Notices clients that went away while their request is worked on. No Triton here."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from legokv.errors import LegokvError

POLL_SECONDS = 0.05

log = logging.getLogger(__name__)


class CancelWatch:
    """Polls the watched requests from one thread and calls `cancel(request_id)` for those gone.

    `cancel` says whether it found the request; until it does, it is called again.
    """

    def __init__(self, cancel: Callable[[str], bool]) -> None:
        self._cancel = cancel
        self._watched: dict[str, Callable[[], bool]] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="cancel-watch", daemon=True).start()

    @contextmanager
    def watching(self, request_id: str, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """Watch the request for the length of the block."""
        with self._changed:
            self._watched[request_id] = is_cancelled
            self._changed.notify()
        try:
            yield
        finally:
            self._forget(request_id)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watched)
                watched = list(self._watched.items())
            for request_id, is_cancelled in watched:
                if is_cancelled() and self._was_cancelled(request_id):
                    self._forget(request_id)
            threading.Event().wait(POLL_SECONDS)

    def _was_cancelled(self, request_id: str) -> bool:
        try:
            return self._cancel(request_id)
        except LegokvError as error:
            log.warning("request %s could not be cancelled: %s", request_id, error)
            return False

    def _forget(self, request_id: str) -> None:
        with self._changed:
            self._watched.pop(request_id, None)

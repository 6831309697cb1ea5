"""Which chunks are pinned, known without asking: for one who must not wait for a database."""

import logging
import threading
from collections.abc import Callable, Collection

from legokv.errors import Busy, CacheUnavailable

PIN_SECONDS = 0.5
"""A pin or its end is known after that long at most, where the registry answers."""

log = logging.getLogger(__name__)


class LatestPins:
    """Keys of pinned chunks as `ask` gave them last; a thread asks again and again."""

    def __init__(self, ask: Callable[[], Collection[str]], seconds: float = PIN_SECONDS) -> None:
        self._ask = ask
        self._keys: frozenset[str] = frozenset()
        self._refresh()
        asking = threading.Thread(target=self._keep_asking, args=(seconds,), daemon=True)
        asking.start()

    def __call__(self) -> frozenset[str]:
        return self._keys

    def _keep_asking(self, seconds: float) -> None:
        waiting = threading.Event()
        while not waiting.wait(seconds):
            try:
                self._refresh()
            except Exception:
                # The thread's boundary: pins that are known no more would let documents go.
                log.exception("pins are used as they were known last")

    def _refresh(self) -> None:
        try:
            self._keys = frozenset(self._ask())
        except (Busy, CacheUnavailable) as error:
            log.debug("pins are used as they were known last: %s", error)

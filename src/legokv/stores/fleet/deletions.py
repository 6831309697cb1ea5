"""Hears in one process what is deleted in others, so that nothing deleted is remembered."""

import logging
import threading
from collections.abc import Iterator

from legokv.errors import CacheUnavailable
from legokv.stores.fleet.connection import Connection
from legokv.stores.fleet.replies import Recall

RESUBSCRIBE_SECONDS = 1.0
_LISTEN_SECONDS = 1.0

_log = logging.getLogger(__name__)


class DeletionWatch:
    """Forgets each document in `recall` that is deleted anywhere, as soon as Redis says so.

    Whenever it begins to hear, again or for the first time, it asks about all that is remembered:
    what was deleted while it was deaf is forgotten then.
    """

    def __init__(self, connection: Connection, recall: Recall) -> None:
        self._connection = connection
        self._recall = recall
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Listen in a thread of its own, unless it does already."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deletions", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                for place in self._heard():
                    self._recall.forget(*place)
            except CacheUnavailable as error:
                _log.debug("deletions are not heard: %s", error)
            self._closed.wait(RESUBSCRIBE_SECONDS)

    def _heard(self) -> Iterator[tuple[str, str]]:
        """(namespace, id) of what was deleted meanwhile, then of each deletion as it comes."""
        with self._connection.listening("deleted", _LISTEN_SECONDS) as messages:
            yield from self._deleted_meanwhile()
            for message in messages:
                if self._closed.is_set():
                    return
                if message is None:
                    # A network that is cut is not told to who only listens.
                    self._connection.confirm()
                else:
                    namespace, _, document_id = message.partition("/")
                    yield namespace, document_id

    def _deleted_meanwhile(self) -> list[tuple[str, str]]:
        places = self._recall.places()
        if not places:
            return []
        with self._connection.asking() as client:
            index = f"{self._connection.prefix}numbers"
            numbers = client.hmget(index, [f"{namespace}/{id_}" for namespace, id_ in places])
        return [place for place, number in zip(places, numbers, strict=True) if number is None]

"""Says in the log what a Redis is set to that loses documents, and how to set it. Once a start."""

import logging
import threading

from legokv.errors import CacheUnavailable
from legokv.stores.fleet.connection import RETRY_SECONDS, Connection

KEEPS_ALL = "noeviction"

_log = logging.getLogger(__name__)


def advise_soon(connection: Connection, remote_bytes: int) -> None:
    """Say it now, or in a thread of its own as soon as Redis answers."""
    if not _advised(connection, remote_bytes):
        asking = threading.Thread(
            target=_advise_when_there, args=(connection, remote_bytes), daemon=True
        )
        asking.start()


def advice(max_bytes: int, policy: str, remote_bytes: int) -> list[str]:
    """What is wrong with a Redis' `maxmemory` and policy, a sentence each."""
    faults = []
    if policy != KEEPS_ALL:
        faults.append(
            f"its maxmemory-policy is {policy}, which drops documents as if they were cache: set "
            f"maxmemory-policy {KEEPS_ALL}"
        )
    if 0 < max_bytes <= remote_bytes:
        faults.append(
            f"its maxmemory of {max_bytes} bytes has no room for remote_bytes {remote_bytes} and "
            "the documents' texts: set maxmemory higher, or remote_bytes lower"
        )
    return faults


def _advise_when_there(connection: Connection, remote_bytes: int) -> None:
    waiting = threading.Event()
    while not _advised(connection, remote_bytes):
        waiting.wait(RETRY_SECONDS)


def _advised(connection: Connection, remote_bytes: int) -> bool:
    try:
        max_bytes, policy = connection.memory_settings()
    except CacheUnavailable:
        return False
    for sentence in advice(max_bytes, policy, remote_bytes):
        _log.warning("%s: %s", connection.shown_url, sentence)
    return True

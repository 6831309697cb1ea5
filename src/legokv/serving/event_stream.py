"""Answers' events from the engine's process to another on this machine, by a local socket.

The one who asks listens, each command says where, and the engine sends all events there over one
connection: lines of JSON. Triton's own call between models takes one reply only, and a question
for each token would cost 54 changes of file, a thread and a millisecond.
"""

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from legokv.errors import EngineGone, InvalidRequest, ServerError, StepFailed
from legokv.serving.messages import Event, decode_line, encode_line, failed
from legokv.serving.own_folders import own_folder

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "_LEGOKV_FOLDER"
"""Names the environment's folder for sockets; without it they are in the system's for temporary
files. No setting: whoever starts the server removes the folder with all that is in it."""
MAX_BACKLOG = 100_000
"""Events that wait for a reader who takes none; past that it is believed dead."""
_MAX_LINES = 256
_FOLDER_PREFIX = "legokv-events-"
_GONE = "the engine ended before the answer did, since the server stops or starts again: ask again"

Events = queue.SimpleQueue[Event]


class EventInbox:
    """Listens at `address`, and sorts what comes by request. Safe to use from several threads."""

    def __init__(self) -> None:
        # A folder of its own that only this user may enter.
        parent = os.environ.get(FOLDER_VARIABLE)
        self._expected: dict[str, Events] = {}
        self._open: set[socket.socket] = set()
        self._closed = False
        with ExitStack() as made:
            folder = own_folder(_FOLDER_PREFIX, None if parent is None else Path(parent))
            self.address = str(made.enter_context(folder) / "socket")
            self._listener = _listening(self.address)
            self._folder = made.pop_all()
        threading.Thread(target=self._accept, name="event inbox", daemon=True).start()

    @contextmanager
    def expect(self, request_id: str) -> Iterator[Events]:
        """The queue that the request's events come to, within the block; later ones are lost."""
        events: Events = queue.SimpleQueue()
        self._expected[request_id] = events
        try:
            yield events
        finally:
            del self._expected[request_id]

    def close(self) -> None:
        """Listen no more, and read no more of what is open."""
        self._closed = True
        for connection in (self._listener, *self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._folder.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self._open.add(connection)
                if self._closed:  # after `close` looked at what is open
                    connection.shutdown(socket.SHUT_RDWR)
                threading.Thread(
                    target=self._read, args=(connection,), name="event reader", daemon=True
                ).start()

    def _read(self, connection: socket.socket) -> None:
        """Hand out what one engine sends, until it is gone; then all it owed has failed."""
        try:
            with connection, suppress(OSError):
                for line in connection.makefile("rb"):
                    request_id, event = decode_line(line)
                    expected = self._expected.get(request_id)
                    if expected is not None:
                        expected.put(event)
        finally:
            self._open.discard(connection)
            for waiting in list(self._expected.values()):
                waiting.put(failed(EngineGone(_GONE)))


class EventOutlet:
    """Sends events to one inbox in order, from a thread of its own: whoever sends never waits.

    `lost` is called once: as soon as the inbox is gone, or when it takes nothing any more.
    """

    def __init__(self, address: str, lost: Callable[[], None]) -> None:
        self._lost = lost
        # None: there is nobody to send to any more.
        self._events: queue.SimpleQueue[tuple[str, Event] | None] = queue.SimpleQueue()
        self._connection = _connected(address)
        threading.Thread(target=self._send_all, name="event outlet", daemon=True).start()
        threading.Thread(target=self._watch, name="event reader's end", daemon=True).start()

    def send(self, request_id: str, event: Event) -> None:
        """Send the event when those before it are sent."""
        self._events.put((request_id, event))
        if self._events.qsize() > MAX_BACKLOG:
            # The sending thread then fails, and tells of the loss.
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _watch(self) -> None:
        """Wait for the reader's end: it never says anything."""
        with suppress(OSError):
            self._connection.recv(1)
        self._events.put(None)

    def _send_all(self) -> None:
        # Also after a fault of ours: whoever waits for these events must not wait without end.
        try:
            with self._connection, suppress(OSError):
                while lines := self._next_lines():
                    self._connection.sendall(b"".join(lines))
                self._connection.shutdown(socket.SHUT_RDWR)
        finally:
            self._lost()

    def _next_lines(self) -> list[bytes]:
        """Lines to send now, waited for; none once there is nobody to send to."""
        lines: list[bytes] = []
        while not lines or (not self._events.empty() and len(lines) < _MAX_LINES):
            entry = self._events.get()
            if entry is None:
                return []
            lines.append(_line(*entry))
        return lines


def _line(request_id: str, event: Event) -> bytes:
    """The event as a line, or an error where it cannot be one: a number or text that is none."""
    try:
        return encode_line(request_id, event)
    except (TypeError, ValueError) as error:
        log.exception("an event cannot be sent")
        fault = StepFailed(f"the answer cannot be sent: {type(error).__name__}: {error}")
        return encode_line(request_id, failed(fault))


def _listening(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ServerError(
            f"no socket can be made at {address} ({len(address)} characters): {error}. "
            "Set TMPDIR to a folder with a short name that can be written"
        ) from None
    listener.listen()
    return listener


def _connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(address)
    except (OSError, ValueError) as error:
        connection.close()
        raise InvalidRequest(f"no events can be sent to {address[:120]!r}: {error}") from None
    return connection

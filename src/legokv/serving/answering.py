"""One request's thread: whatever happens in it becomes its own last reply. No tensors here."""

import logging
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from legokv.errors import LegokvError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """Output values by name; the `final` one is the request's last."""

    values: Mapping[str, object]
    final: bool = False


class Responder(Protocol):
    """Where one request's replies go."""

    def send(self, reply: Reply) -> None: ...

    def fail(self, error: LegokvError) -> None:
        """End the request with an error."""


def answer_in_thread(replies: Iterable[Reply], responder: Responder) -> None:
    """Run `answer` in a thread that does not keep the process alive."""
    threading.Thread(target=answer, args=(replies, responder), name="request", daemon=True).start()


def answer(replies: Iterable[Reply], responder: Responder) -> None:
    """Send all replies as they come; an error in making them ends this request and no other."""
    try:
        for reply in replies:
            responder.send(reply)
    except LegokvError as error:
        responder.fail(error)
    except Exception:
        # The process's boundary: a fault of ours must reach the client and the log, and must not
        # leave the request open for ever.
        fault_id = uuid.uuid4().hex[:12]
        log.exception("fault %s in a request", fault_id)
        responder.fail(LegokvError(f"an internal error; the server's log has it as {fault_id}"))

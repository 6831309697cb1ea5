"""One request's thread: whatever happens in it becomes its own last reply. No tensors here."""

import logging
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from legokv.errors import LegokvError
from legokv.serving.log import RequestLine

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


def answer_in_thread(
    replies: Iterable[Reply], responder: Responder, line: RequestLine | None = None
) -> None:
    """Run `answer` in a thread that does not keep the process alive."""
    arguments = (replies, responder, line)
    threading.Thread(target=answer, args=arguments, name="request", daemon=True).start()


def answer(replies: Iterable[Reply], responder: Responder, line: RequestLine | None = None) -> None:
    """Send all replies as they come; an error in making them ends this request and no other.

    The `line` is written when the request has ended, either way.
    """
    try:
        for reply in replies:
            responder.send(reply)
            if reply.final and line is not None:
                line.answered(reply.values)
    except LegokvError as error:
        _fail(responder, line, error)
    except Exception:
        # The process's boundary: a fault of ours must reach the client and the log, and must not
        # leave the request open for ever.
        fault_id, fault = new_fault()
        log.exception("fault %s in a request", fault_id)
        _fail(responder, line, fault)


def new_fault() -> tuple[str, LegokvError]:
    """What a fault of ours is called in the log, and the error that tells a client so."""
    fault_id = uuid.uuid4().hex[:12]
    return fault_id, LegokvError(f"an internal error; the server's log has it as {fault_id}")


def _fail(responder: Responder, line: RequestLine | None, error: LegokvError) -> None:
    responder.fail(error)
    if line is not None:
        line.failed(error)

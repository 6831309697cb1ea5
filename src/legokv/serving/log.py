"""One line of JSON in the log for each request that ended. No text of a prompt is ever in it."""

import hmac
import json
import logging
import os
import select
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from legokv.errors import InvalidRequest, LegokvError, printable
from legokv.serving.settings import Settings

PROBE_VARIABLE = "_LEGOKV_PROBE"
"""Names the environment's id of the server's questions to itself; no setting."""
MAX_ID_LEN = 128
MAX_SENTENCE_BYTES = 1500
"""Of an error's sentence, as JSON. A line then fits into what a pipe takes whole."""
# What a reply says of the request itself; all else in it may be text.
_LOGGED = ("finish_reason", "documents_linked", "head", "created")
_LOGGED_ENDINGS = ("_tokens", "_seconds")

log = logging.getLogger(__name__)


def is_probe(request_id: str) -> bool:
    """Whether a request of this id is the server's own, which only its processes know."""
    probe_id = os.environ.get(PROBE_VARIABLE, "")
    return bool(probe_id) and hmac.compare_digest(request_id.encode(), probe_id.encode())


@dataclass
class RequestLine:
    """One request as its line will tell it; written once, by `answered` or by `failed`.

    `facts` are added as they become known and checked: a client's wrong values are not.
    """

    model: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    facts: dict[str, object] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def is_probe(self) -> bool:
        """Whether the request is the server's own question to itself, which no line tells of."""
        return is_probe(self.request_id)

    def check_id(self) -> None:
        """InvalidRequest if the client chose an id that is too long to be kept."""
        if len(self.request_id) > MAX_ID_LEN:
            raise InvalidRequest(
                f"the request's id has {len(self.request_id)} characters, at most {MAX_ID_LEN} are "
                "taken"
            )

    def answered(self, values: Mapping[str, object]) -> None:
        """The request ended with a reply of these values; its counts and times are written."""
        facts = {n: v for n, v in values.items() if n in _LOGGED or n.endswith(_LOGGED_ENDINGS)}
        self._write(logging.INFO, facts)

    def failed(self, error: LegokvError) -> None:
        """The request ended with an error; a fault of the server's is at level "error"."""
        level = logging.ERROR if error.code == "INTERNAL" else logging.WARNING
        self._write(level, {"error": {"code": error.code, "message": _cut(str(error))}})

    def _write(self, level: int, outcome: Mapping[str, object]) -> None:
        if self.is_probe:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": logging.getLevelName(level).lower(),
            "model": self.model,
            "request_id": self.request_id[:MAX_ID_LEN],
            **self.facts,
            "total_seconds": time.monotonic() - self.started,
            **outcome,
        }
        log.log(level, "%s", json.dumps(line, allow_nan=False))


def _cut(sentence: str) -> str:
    """The sentence if it is within the bound, else its beginning."""
    kept = sentence
    while len(json.dumps(kept, allow_nan=False)) > MAX_SENTENCE_BYTES:
        kept = kept[: len(kept) * 7 // 8]
    return kept if kept == sentence else f"{kept} …"


def line_for(model: str, client_id: str) -> RequestLine:
    """A request's line, under the id the client gave it, or one of its own."""
    return RequestLine(model, client_id) if client_id else RequestLine(model)


class SafeFormatter(logging.Formatter):
    """Lines that nobody's text can forge: control characters are escaped, tracebacks indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {printable(line)}" for line in lines)


class WholeLines:
    """Lines in a stream that other processes write to as well: none is cut, nor stands behind
    another's.

    Each is one write, of no more than a pipe takes whole. With `fresh` it begins a line of its own
    whatever stands there, for Triton writes a line first and then its end.
    """

    def __init__(self, stream: TextIO, *, fresh: bool) -> None:
        self._stream = stream
        self._before = "\n" if fresh else ""
        self._most = select.PIPE_BUF - len("\n\n")

    def write(self, text: str) -> None:
        """Write a record, which ends in a new line: at once, or line by line if it is long."""
        short = len(text.encode(errors="backslashreplace")) <= self._most
        for lines in (text[:-1],) if short else text[:-1].split("\n"):
            self._stream.write(f"{self._before}{self._fitting(lines)}\n")
            self._stream.flush()

    def flush(self) -> None:
        """Nothing is held back."""

    def _fitting(self, line: str) -> str:
        return line.encode(errors="backslashreplace")[: self._most].decode(errors="ignore")


def tell(line: str) -> None:
    """Print a line of `legokv serve` itself, beside which its front writes: at once."""
    WholeLines(sys.stderr, fresh=False).write(f"{line}\n")


def log_to_server(model: str, settings: Settings, *, fresh: bool = True) -> None:
    """Let lines of the settings' level through: requests' as they are, others with the model's
    name. `fresh`: standard error is Triton's too.
    """
    form = f"%(asctime)s {model} %(levelname)s %(name)s: %(message)s"
    stream = WholeLines(sys.stderr, fresh=fresh)
    others = logging.StreamHandler(stream)
    others.setFormatter(SafeFormatter(form))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[others])
    requests = logging.StreamHandler(stream)
    requests.setFormatter(SafeFormatter("%(message)s"))
    log.addHandler(requests)
    log.propagate = False
    log.disabled = settings.request_log == "off"

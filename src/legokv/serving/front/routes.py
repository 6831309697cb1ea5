"""Which of Triton's paths are passed on, which are closed, and why. All others are not known."""

import re
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from legokv.errors import PathClosed

MODELS = ("documents", "generate")
"""The models that clients may name; `engine` is theirs alone."""


class Kind(Enum):
    """What is done with a request."""

    PASS = "pass"
    INFER = "infer"
    GENERATE = "generate"
    LIVE = "live"
    READY = "ready"


@dataclass(frozen=True)
class _Row:
    method: str
    path: re.Pattern[str]
    kind: Kind


def _row(method: str, path: str, kind: Kind) -> _Row:
    return _Row(method, re.compile(path), kind)


VERSION = "1"
_VERSION = rf"(?:/versions/{VERSION})?"
_MODEL = rf"/v2/models/(?:{'|'.join(MODELS)}){_VERSION}"
_ROWS = (
    _row("POST", rf"/v2/models/generate{_VERSION}/generate(?:_stream)?", Kind.GENERATE),
    _row("POST", rf"/v2/models/documents{_VERSION}/infer", Kind.INFER),
    _row("GET", r"/v2/health/live", Kind.LIVE),
    _row("GET", r"/v2/health/ready", Kind.READY),
    _row("GET", rf"{_MODEL}/ready", Kind.READY),
    _row("GET", rf"/v2/?|{_MODEL}(?:/config)?", Kind.PASS),
)
_CLOSED = (
    (r"/v2/(?:system|cuda)sharedmemory(?:/.*)?", "shared memory of clients"),
    (r"/v2/repository/.*", "control of models"),
    (r"/v2/(?:models/.*/)?trace/setting", "tracing"),
    (r"/v2/logging", "logging"),
    (r"/v2/models/(?:.*/)?stats", "Triton's statistics (the metrics port has its numbers)"),
    (r"/v2/models/engine(?:/.*)?", "the model engine, which only the other two call,"),
)


def kind_of(method: str, path: str) -> Kind:
    """What is done with a request of this method and undecoded path; PathClosed if it ends here."""
    rows = [row for row in _ROWS if row.path.fullmatch(path)]
    for row in rows:
        if row.method == method:
            return row.kind
    if rows:
        raise PathClosed(
            f"{path} takes {rows[0].method}, not {method[:20]}", HTTPStatus.METHOD_NOT_ALLOWED
        )
    if re.fullmatch(rf"/v2/models/generate{_VERSION}/infer", path):
        raise PathClosed(
            "generate has no infer over HTTP: POST /v2/models/generate/generate for the whole "
            "answer or /v2/models/generate/generate_stream for its pieces; over gRPC call "
            "ModelInfer or ModelStreamInfer",
            HTTPStatus.BAD_REQUEST,
        )
    for pattern, what in _CLOSED:
        if re.fullmatch(pattern, path):
            raise PathClosed(f"{what} is closed on this server", HTTPStatus.FORBIDDEN)
    raise PathClosed(
        f"there is nothing at {path[:200]!r}: the models are {' and '.join(MODELS)}, "
        "below /v2/models/",
    )

"""What may come of a request, and what never may."""

import json
import re
from typing import Any

from fuzz.request import Grpc, Http, Request
from fuzz.sending import Outcome

# The server may be full, a model may start anew, or an operation may be none: docs/serving.md.
MAY = {"200", "400", "403", "404", "405", "408", "409", "411", "413", "414", "415", "429", "431",
       "501", "503", "505", "OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE",
       "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "ALREADY_EXISTS", "CANCELLED", "PERMISSION_DENIED",
       "FAILED_PRECONDITION", "UNAUTHENTICATED", "refused", "left", "raw", "unsent"}  # fmt: skip
_INSIDE = re.compile(
    rb"Traceback|\nAt:|File \"|site-packages|/src/legokv|/dev/shm|legokv_\d+_|[Ss]tub process"
    rb"|(?:Type|Key|Index|Attribute|Assertion|Unicode\w+|ZeroDivision|Recursion|Value)Error\b"
)


def fault_of(request: Request, outcome: Outcome) -> str | None:
    """What is wrong with the outcome, or None."""
    if outcome.status not in MAY and not _may_close(request, outcome):
        return f"status {outcome.status}: {outcome.body[:200]!r}"
    inside = _INSIDE.search(_own_words(request, outcome))
    if inside:
        return f"the reply shows the server's inside: {inside[0]!r} in {outcome.body[:300]!r}"
    if isinstance(request, Http) and outcome.status.isdigit():
        return _fault_of_json(outcome)
    return None


def _may_close(request: Request, outcome: Outcome) -> bool:
    """Odd framing and odd headers may end a connection; a client's own error is none of ours."""
    odd = isinstance(request, Http) and (request.headers or request.chunk_bytes)
    return outcome.status == "closed" and bool(odd)


def _own_words(request: Request, outcome: Outcome) -> bytes:
    """Of an answered question the text is the model's, and may be anything."""
    answered = outcome.status in ("200", "OK", "left")
    return b"" if answered and isinstance(request, Http | Grpc) else outcome.body


def _fault_of_json(outcome: Outcome) -> str | None:
    for line in outcome.body.decode("utf-8", "replace").splitlines():
        content = line.removeprefix("data: ")
        if content.startswith(("{", "[")) and line.isprintable():
            try:
                json.loads(content, parse_constant=_no_json)
            except ValueError as error:
                return f"no JSON ({error}): {content[:200]}"
    return None


def _no_json(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")

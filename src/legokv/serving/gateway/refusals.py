"""Errors as clients of OpenAI's and of Anthropic's API read them: statuses and JSON objects that
call each field by the name that the client sent.
"""

import re
from collections.abc import Mapping
from copy import copy
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from legokv.errors import ApiRefused, InvalidRequest, LegokvError, RateLimited, RequestTooLarge
from legokv.serving.error_codes import HTTP_STATUS

RETRY_SECONDS = "2"
"""After so long a client that is told 503 may ask again."""

# What clients of these APIs know: their own fault, and a server to be asked again.
_STATUS = {**HTTP_STATUS, "UNSUPPORTED": 400, "CANCELLED": 503}
_NO_DOCUMENT = re.compile(r"no document '(?:doc-)?([^']*)' in namespace '[^']*'")
_OWN_ID = re.compile(r"\bdoc-(?=[0-9a-f]{24}\b)")
_OPENAI_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_ANTHROPIC_KINDS = {
    **_OPENAI_KINDS,
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
}
_WRONG = "invalid_request_error"
Names = Mapping[str, str]
"""What the client calls fields of `generate`; also those that have the same name there."""


def status_of(error: LegokvError) -> int:
    """HTTP's status for an error."""
    if isinstance(error, ApiRefused):
        return error.status
    return 413 if isinstance(error, RequestTooLarge) else _STATUS[error.code]


def renamed(error: LegokvError, names: Names) -> LegokvError:
    """An error of a model's with its fields as the client calls them.

    A word may be the client's own, such as one of a document's id: a name is it only at the
    beginning, in quotes, or with more than letters in it.
    """
    if not names:
        return error
    text = str(error)
    matches = [m for m in re.finditer(_pattern_of(names), text) if _is_name(m)]
    sentence, end = "", 0
    for match in matches:
        sentence += text[end : match.start()] + names[match[0]]
        end = match.end()
    sentence += text[end:]
    if isinstance(error, InvalidRequest):
        param = next((names[match[0]] for match in matches), None)
        return ApiRefused(sentence, status_of(error), param, "invalid_value")
    other = copy(error)
    other.args = (sentence,)
    return other


def _pattern_of(names: Names) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b"


def _is_name(match: re.Match[str]) -> bool:
    text, start, end = match.string, match.start(), match.end()
    in_quotes = text[max(0, start - 1) : start] == "'" == text[end : end + 1]
    return not start or in_quotes or not match[0].isalpha()


def sentence_of(error: LegokvError) -> str:
    """The error's text, documents called by their ids as files."""
    text = _NO_DOCUMENT.sub(_no_file, str(error))
    return _OWN_ID.sub("file-", text)


def _no_file(match: re.Match[str]) -> str:
    file_id = match[1] if match[1].startswith("file-") else f"file-{match[1]}"
    return f"there is no file {file_id!r} (GET /v1/files lists them)"


def openai_error(error: LegokvError) -> dict[str, Any]:
    """The body that says so."""
    kind = _OPENAI_KINDS.get(status_of(error), _WRONG)
    if kind == "not_found_error":
        kind = _WRONG  # as OpenAI has it
    param = error.param if isinstance(error, ApiRefused) else None
    code = error.kind if isinstance(error, ApiRefused) else None
    return {"error": {"message": sentence_of(error), "type": kind, "param": param, "code": code}}


def anthropic_error(error: LegokvError, request_id: str) -> dict[str, Any]:
    """The same in Anthropic's shape."""
    kind = _ANTHROPIC_KINDS.get(status_of(error), _WRONG)
    return {
        "type": "error",
        "error": {"type": kind, "message": sentence_of(error)},
        "request_id": request_id,
    }


def is_anthropic(request: Request) -> bool:
    """Whether the client speaks Anthropic's API: its paths of files and models are OpenAI's too."""
    return "anthropic-version" in request.headers or request.url.path.startswith("/v1/messages")


def refusal(request: Request, error: LegokvError) -> Response:
    """The error in the shape of the API that the client speaks."""
    status = status_of(error)
    content = openai_error(error)
    if is_anthropic(request):
        content = anthropic_error(error, request.state.request_id)
    return JSONResponse(content, status, _headers(error, status))


def _headers(error: LegokvError, status: int) -> dict[str, str]:
    """What a client needs to go on: when it may ask again, and how it says who it is."""
    if isinstance(error, RateLimited):
        return {"retry-after": str(error.retry_after_seconds)}
    return {503: {"retry-after": RETRY_SECONDS}, 401: {"www-authenticate": "Bearer"}}.get(
        status, {}
    )

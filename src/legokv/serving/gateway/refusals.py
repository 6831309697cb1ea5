"""Errors as clients of OpenAI's and of Anthropic's API read them: statuses and JSON objects."""

import re
from typing import Any

from legokv.errors import (
    ApiRefused,
    CacheUnavailable,
    InvalidRequest,
    LegokvError,
    NotFound,
    RequestTooLarge,
)

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


def status_of(error: LegokvError) -> int:
    """HTTP's status for an error."""
    if isinstance(error, ApiRefused):
        return error.status
    if isinstance(error, RequestTooLarge):
        return 413
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, InvalidRequest) or error.code == "UNSUPPORTED":
        return 400
    if isinstance(error, CacheUnavailable) or error.code in ("UNAVAILABLE", "CANCELLED"):
        return 503
    return 500


def sentence_of(error: LegokvError) -> str:
    """The error's text, documents called by their ids as files."""
    return _OWN_ID.sub("file-", str(error))


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

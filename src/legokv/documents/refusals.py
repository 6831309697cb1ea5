"""What every registry refuses with the same words, wherever it is kept."""

from legokv.errors import Busy, InvalidRequest, NotFound


def unknown_document(namespace: str, document_id: str) -> NotFound:
    """The error for a document that the namespace does not have."""
    return NotFound(f"no document {document_id[:80]!r} in namespace {namespace!r}")


def check_pin_fits(num_tokens: int, others: int, max_pinned_tokens: int) -> None:
    """InvalidRequest or Busy if a document of so many tokens cannot be pinned beside others."""
    if num_tokens > max_pinned_tokens:
        raise InvalidRequest(
            f"a document of {num_tokens} tokens is more than the {max_pinned_tokens} tokens "
            "that may be pinned at all"
        )
    if others + num_tokens > max_pinned_tokens:
        raise Busy(
            f"{others} tokens are pinned and this document has {num_tokens}: more than the "
            f"{max_pinned_tokens} that may be pinned; unpin another document first"
        )

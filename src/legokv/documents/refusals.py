"""What every registry refuses with the same words, wherever it is kept."""

from legokv.documents.document import NamespaceQuota
from legokv.errors import Busy, InvalidRequest, NotFound


def unknown_document(namespace: str, document_id: str) -> NotFound:
    """The error for a document that the namespace does not have."""
    return NotFound(f"no document {document_id[:80]!r} in namespace {namespace!r}")


def check_quota_fits(num_tokens: int, others: int, quota: NamespaceQuota) -> None:
    """InvalidRequest or Busy if a new document of so many tokens would pass its namespace's quota.

    others: tokens of the namespace's documents.
    """
    asked, used = num_tokens * quota.token_bytes, others * quota.token_bytes
    if asked > quota.max_bytes:
        raise InvalidRequest(
            f"the KV of this document takes {asked} bytes, more than the {quota.max_bytes} that a "
            "namespace may have at all (namespace_bytes)"
        )
    if used + asked > quota.max_bytes:
        raise Busy(
            f"the KV of this document takes {asked} bytes and its namespace's documents have "
            f"{used}: more than the {quota.max_bytes} it may have (namespace_bytes); delete "
            "documents first"
        )


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

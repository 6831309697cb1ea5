"""What a registry of documents offers, wherever it is kept. No KV, no SQL."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from legokv.documents.document import (
    Changes,
    Document,
    DocumentPage,
    DocumentsSize,
    NamespaceQuota,
    NewDocument,
    StoredChunk,
)
from legokv.errors import Busy, ClaimLost, InvalidRequest, NotFound


@dataclass(frozen=True)
class Claim:
    """The right to compile one document, and the duty to say how it ended.

    `chunks` are the document's, in order; those with a key are compiled.
    """

    namespace: str
    document_id: str
    number: int
    holder: str
    seconds: float
    chunks: tuple[StoredChunk, ...]


@dataclass(frozen=True)
class CompiledChunk:
    """The key of a document's chunk number `position`."""

    position: int
    key: str


def claim_lost(claim: Claim) -> ClaimLost:
    """The error for a claim that is nobody's any more, or another's."""
    return ClaimLost(
        f"document {claim.document_id} was deleted or taken over while it was compiled"
    )


class DocumentRegistry(Protocol):
    """Documents by (namespace, id), the one truth for all who share it. Safe for several threads.

    Each method is one atomic step. CacheUnavailable, saying why, if the registry cannot be reached
    or written; NotFound for a document that is not in the namespace.
    """

    def register(
        self,
        new: NewDocument,
        changes: Changes,
        max_pinned_tokens: int,
        quota: NamespaceQuota | None = None,
    ) -> tuple[Document, bool]:
        """The document of this content, and whether it is new."""

    def get(self, namespace: str, document_id: str) -> Document:
        """The document as it is now."""

    def text(self, namespace: str, document_id: str) -> str:
        """Its normalised text."""

    def chunks(self, namespace: str, *document_ids: str) -> tuple[StoredChunk, ...]:
        """Their chunks in order, one document's behind another's."""

    def page(
        self,
        namespace: str,
        *,
        after: int | str = 0,
        limit: int = 100,
        name: str | None = None,
        newest_first: bool = False,
    ) -> DocumentPage:
        """Up to `limit` documents in order of registration, or newest first; those called `name`
        if given.

        `after` is a page's `next_after`, or a document's id: NotFound if that is not there.
        """

    def namespaces(self) -> tuple[str, ...]:
        """All namespaces that have documents, sorted."""

    def update(
        self, namespace: str, document_id: str, changes: Changes, max_pinned_tokens: int
    ) -> Document:
        """The document with all the changes made, or none of them if a pin is refused."""

    def touch(self, namespace: str, document_ids: Iterable[str]) -> None:
        """Note that these were used; never an error, for an answer does not depend on it."""

    def delete(self, namespace: str, document_id: str) -> tuple[str, ...]:
        """Forget the document; the chunk keys that no document names any more."""

    def sweep(self) -> None:
        """Unpin documents whose time is over; begin it anew where the clock was set back since."""

    def pinned_chunk_keys(self) -> frozenset[str]:
        """Keys of the compiled chunks of pinned documents, in all namespaces."""

    def unnamed(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of the keys that no document's chunks carry."""

    def named(self, keys: Collection[str]) -> Mapping[str, str]:
        """Those of the keys that some document's chunks carry, each with its namespace."""

    def now(self) -> float:
        """Unix seconds by the clock that expiry and deadlines are told by."""

    def take_claim(self, namespace: str, document_id: str, seconds: float) -> Claim | None:
        """The right to compile the document, for `seconds`; None if there is nothing to do."""

    def record_chunk(self, claim: Claim, position: int, key: str) -> None:
        """Note a compiled chunk, and move the claim's deadline; ClaimLost, or nothing."""

    def renew_claim(self, claim: Claim) -> None:
        """Move the claim's deadline, for its holder is at work; ClaimLost, or nothing."""

    def finish_claim(
        self, claim: Claim, failure: str | None = None, last: CompiledChunk | None = None
    ) -> Document:
        """The document, ready with its `last` chunk noted, or failed for a reason; or ClaimLost,
        and nothing is noted.
        """

    def close(self) -> None:
        """Let go of files and connections."""


def unknown_document(namespace: str, document_id: str) -> NotFound:
    """The error for a document that the namespace does not have."""
    return NotFound(f"no document {document_id[:80]!r} in namespace {namespace!r}")


def check_quota_fits(new: DocumentsSize, others: DocumentsSize, quota: NamespaceQuota) -> None:
    """InvalidRequest or Busy if a new document would pass its namespace's quota.

    others: the namespace's documents.
    """
    asked, used = quota.taken(new), quota.taken(others)
    if asked > quota.max_bytes:
        raise InvalidRequest(
            f"this document takes {asked} bytes with its KV, more than the {quota.max_bytes} that "
            "a namespace may have at all (namespace_bytes)"
        )
    if used + asked > quota.max_bytes:
        raise Busy(
            f"this document takes {asked} bytes with its KV and its namespace's "
            f"{others.num_documents} documents have {used}: more than the {quota.max_bytes} it may "
            "have (namespace_bytes); delete documents first"
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

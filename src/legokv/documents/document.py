"""What a document is: plain data, its identity, and which texts and namespaces are taken."""

import enum
import hashlib
import re
import struct
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from legokv.errors import InvalidRequest, kind_of

TokenSpan = tuple[int, ...]

DEFAULT_NAMESPACE = "default"
MAX_ID_LEN = 64
"""Longest id that is looked for: ours have 28 characters."""
MAX_NAME_LEN = 256
DOCUMENT_BYTES = 1024
"""What a document counts against its namespace's quota, however short it is."""
MAX_TTL_SECONDS = 3.2e10
"""A thousand years: past it Unix seconds lose the precision that comparing them needs."""

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Letters and emoji are written with them.
_JOINERS = "\u200c\u200d"
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_A_NAMESPACE = "a namespace is 1 to 64 letters, digits, dots, underscores or dashes"


def is_hidden(letter: str) -> bool:
    """Whether it can end a line, drive a terminal or turn the letters around it."""
    return letter not in _JOINERS and unicodedata.category(letter) in _HIDDEN


class State(enum.StrEnum):
    """How far a document's chunks are compiled."""

    REGISTERED = "registered"
    COMPILING = "compiling"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class DocumentsSize:
    """What of some documents counts against a quota; `text_bytes` in UTF-8."""

    num_documents: int
    num_tokens: int
    text_bytes: int


@dataclass(frozen=True)
class NamespaceQuota:
    """Most that one namespace's documents may take: KV, texts, and what any document takes.

    token_bytes: what a token's KV takes, stored.
    """

    max_bytes: int
    token_bytes: int

    def taken(self, size: DocumentsSize) -> int:
        """Bytes that documents of that size take."""
        kv_bytes = size.num_tokens * self.token_bytes
        return kv_bytes + size.text_bytes + size.num_documents * DOCUMENT_BYTES


@dataclass(frozen=True)
class DocumentLimits:
    """What one server takes. `max_pinned_tokens` is its share of the pool that pins may hold;
    `rank` says whether documents are ranked unless their registration says."""

    max_document_bytes: int = 4 * 2**20
    max_document_tokens: int = 131072
    max_chunk_tokens: int = 1024
    max_pinned_tokens: int = 65536
    claim_seconds: float = 120.0
    wait_seconds: float = 600.0
    namespace_quota: NamespaceQuota | None = None
    rank: bool = False
    token_bytes: int = 0
    """What a token's KV takes, stored."""

    def quota_of(self, most: int) -> NamespaceQuota | None:
        """The quota of a namespace that may have at most so many bytes, 0 for what any may have."""
        quota = self.namespace_quota
        if not most or (quota is not None and quota.max_bytes <= most):
            return quota
        return NamespaceQuota(most, self.token_bytes)


@dataclass(frozen=True)
class NewDocument:
    """A document to register: `text` normalised, `chunks` its token ids in order, cut.

    `head` has the token ids that the first of them is compiled behind; none: it is compiled alone.
    """

    namespace: str
    text: str
    chunks: tuple[TokenSpan, ...]
    head: TokenSpan = ()

    @cached_property
    def id(self) -> str:
        """The id its content gives it."""
        return document_id(self.namespace, self.text)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(map(len, self.chunks))

    @cached_property
    def size(self) -> DocumentsSize:
        """That of this document alone."""
        return DocumentsSize(1, self.num_tokens, len(self.text.encode()))


class Changes(TypedDict, total=False):
    """What of a document may change; what is not there stays as it is.

    `ttl_seconds` counts from now, None means for ever. `pinned` keeps its chunks from eviction,
    not from expiry.
    """

    name: str | None
    ttl_seconds: float | None
    pinned: bool


@dataclass(frozen=True)
class Document:
    """A registered document without its text and token ids. Times are Unix seconds.

    `num_bytes` counts the text in UTF-8; `compiled_chunks` of `num_chunks` are compiled so far;
    `failure` is why compiling failed, None in every other state.
    """

    id: str
    namespace: str
    name: str | None
    state: State
    failure: str | None
    num_bytes: int
    num_tokens: int
    num_chunks: int
    compiled_chunks: int
    pinned: bool
    created_at: float
    expires_at: float | None
    last_used_at: float | None


@dataclass(frozen=True)
class StoredChunk:
    """A document's chunk number `position`, from 0; `key` is None until it was compiled once.

    `head` is what the document is registered to be compiled behind, the same for all its chunks.
    """

    token_ids: TokenSpan
    key: str | None
    position: int
    head: TokenSpan = ()


@dataclass(frozen=True)
class DocumentPage:
    """Some documents in order of registration; `next_after` continues the list, None ends it."""

    documents: tuple[Document, ...]
    next_after: int | None


def normalise_text(text: str) -> str:
    """The text as it is registered, so that the same content gets the same id.

    Line ends become newlines; a byte order mark, blank lines before and blanks behind the text go.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").rstrip()
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", text)


def document_id(namespace: str, text: str) -> str:
    """`doc-` and 24 hexadecimal digits of SHA-256 over the namespace and the normalised text."""
    digest = hashlib.sha256()
    for part in (b"legokv document", namespace.encode(), text.encode()):
        # Each part behind its length: no two lists of parts have the same encoding.
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return f"doc-{digest.hexdigest()[:24]}"


def check_namespace(namespace: object) -> str:
    """The namespace itself; InvalidRequest if it is not a text of 1 to 64 of A-Z a-z 0-9 . _ -"""
    if not isinstance(namespace, str):
        raise InvalidRequest(f"{_A_NAMESPACE}, not {kind_of(namespace)}")
    if not _NAMESPACE.fullmatch(namespace):
        raise InvalidRequest(
            f"{_A_NAMESPACE}, not {namespace[:80]!r} ({len(namespace)} characters)"
        )
    return namespace


def namespace_or_default(namespace: str | None) -> str:
    """The namespace that a request means: what it says, or DEFAULT_NAMESPACE if it says nothing.

    InvalidRequest for anything else than a namespace, an empty text too.
    """
    return DEFAULT_NAMESPACE if namespace is None else check_namespace(namespace)

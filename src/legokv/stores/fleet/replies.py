"""What one process remembers of documents it has seen, for the time in which Redis is away."""

import threading
from collections import OrderedDict
from typing import Any

from legokv.chunks.chunk import tokens_from_blob
from legokv.documents.document import Document, State, StoredChunk

MAX_TOKENS = 4 * 2**20


class Recall:
    """The chunks of documents seen of late, for so many tokens. Safe for several threads.

    A document's content never changes, so what is remembered is right; what is deleted must be
    forgotten by whoever hears of it.
    """

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str], tuple[StoredChunk, ...]] = OrderedDict()
        self._num_tokens = 0
        self._num_forgotten = 0

    @property
    def num_forgotten(self) -> int:
        """How often something was to be forgotten."""
        return self._num_forgotten

    def note(
        self, namespace: str, document_id: str, chunks: tuple[StoredChunk, ...], num_forgotten: int
    ) -> None:
        """Remember a document, forgetting those not seen for the longest time.

        Nothing if something was forgotten since there were `num_forgotten`: it may be this one.
        """
        with self._lock:
            if self._num_forgotten != num_forgotten:
                return
            self._forget((namespace, document_id))
            self._seen[namespace, document_id] = chunks
            self._num_tokens += _num_tokens(chunks)
            while self._num_tokens > self._max_tokens:
                self._forget(next(iter(self._seen)))

    def forget(self, namespace: str, document_id: str) -> None:
        with self._lock:
            self._num_forgotten += 1
            self._forget((namespace, document_id))

    def get(self, namespace: str, document_id: str) -> tuple[StoredChunk, ...] | None:
        with self._lock:
            return self._seen.get((namespace, document_id))

    def places(self) -> list[tuple[str, str]]:
        """(namespace, id) of all that is remembered."""
        with self._lock:
            return list(self._seen)

    def _forget(self, place: tuple[str, str]) -> None:
        self._num_tokens -= _num_tokens(self._seen.pop(place, ()))


def _num_tokens(chunks: tuple[StoredChunk, ...]) -> int:
    return sum(len(chunk.token_ids) for chunk in chunks)


def to_chunks(parts: list[Any]) -> tuple[StoredChunk, ...]:
    """A document's chunks from its head, then their token ids and keys in turn."""
    head, pairs = tokens_from_blob(bytes.fromhex(parts[0].decode())), parts[1:]
    return tuple(
        StoredChunk(tokens_from_blob(blob), None if key is None else key.decode(), place, head)
        for place, (blob, key) in enumerate(zip(pairs[::2], pairs[1::2], strict=True))
    )


def to_document(item: list[Any]) -> tuple[int, Document]:
    """The document's number and the document."""
    number, compiled_chunks, *pairs = item
    fields = {
        name.decode(): value.decode() for name, value in zip(pairs[::2], pairs[1::2], strict=True)
    }
    return int(number), Document(
        id=fields["id"],
        namespace=fields["namespace"],
        name=fields.get("name"),
        state=State(fields["state"]),
        failure=fields.get("failure"),
        num_bytes=int(fields["num_bytes"]),
        num_tokens=int(fields["num_tokens"]),
        num_chunks=int(fields["num_chunks"]),
        compiled_chunks=int(compiled_chunks),
        pinned=fields["pinned"] == "1",
        created_at=float(fields["created_at"]),
        expires_at=_seconds(fields.get("expires_at")),
        last_used_at=_seconds(fields.get("last_used_at")),
    )


def _seconds(text: str | None) -> float | None:
    return None if text is None else float(text)

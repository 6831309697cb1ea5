"""The registry of documents in a Redis that several machines share. No KV."""

import logging
import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from legokv.chunks.chunk import token_blob
from legokv.documents.document import (
    DOCUMENT_BYTES,
    Changes,
    Document,
    DocumentPage,
    DocumentsSize,
    NamespaceQuota,
    NewDocument,
    State,
    StoredChunk,
)
from legokv.documents.protocol import (
    Claim,
    CompiledChunk,
    check_pin_fits,
    check_quota_fits,
    claim_lost,
    unknown_document,
)
from legokv.errors import CacheUnavailable, NotFound, StillUnavailable
from legokv.stores.fleet.connection import Connection, Script
from legokv.stores.fleet.replies import Recall, to_chunks, to_document

_log = logging.getLogger(__name__)


class RedisRegistry:
    """A DocumentRegistry that all servers of a fleet share; deadlines are by Redis' clock.

    While Redis is away, `chunks` gives what this process has seen and `pinned_chunk_keys` what it
    knew last; all else is CacheUnavailable.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._script = Script("documents")
        self._recall = Recall()
        self._pinned: frozenset[str] = frozenset()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def now(self) -> float:
        return self.connection.now()

    def register(
        self,
        new: NewDocument,
        changes: Changes,
        max_pinned_tokens: int,
        quota: NamespaceQuota | None = None,
    ) -> tuple[Document, bool]:
        """The document of this content, and whether it is new. All or nothing, as in SQLite."""
        fields = {
            "namespace": new.namespace,
            "id": new.id,
            "text": new.text,
            "num_bytes": new.size.text_bytes,
            "num_tokens": new.num_tokens,
            "changes": changes,
            "max_pinned_tokens": max_pinned_tokens,
            "quota": quota and {**vars(quota), "document_bytes": DOCUMENT_BYTES},
        }
        blobs = map(token_blob, new.chunks)
        reply = self.connection.run(self._script, "register", fields, *blobs)
        _refuse_pin(reply, max_pinned_tokens)
        if reply[0] == b"quota":
            assert quota is not None, "the script refuses by a quota that it was given"
            check_quota_fits(new.size, DocumentsSize(*map(int, reply[1:4])), quota)
            raise AssertionError("the script refuses a document where Python does")
        return to_document(reply[2])[1], bool(reply[1])

    def get(self, namespace: str, document_id: str) -> Document:
        """NotFound if the namespace has no such document."""
        return to_document(self._ask("get", namespace, document_id)[1])[1]

    def text(self, namespace: str, document_id: str) -> str:
        """The normalised text; NotFound if the namespace has no such document."""
        text: bytes = self._ask("text", namespace, document_id)[1]
        return text.decode()

    def chunks(self, namespace: str, *document_ids: str) -> tuple[StoredChunk, ...]:
        """The chunks in order; NotFound for a document that is not in the namespace."""
        return tuple(
            chunk
            for document_id in document_ids
            for chunk in self._chunks_of(namespace, document_id)
        )

    def _chunks_of(self, namespace: str, document_id: str) -> tuple[StoredChunk, ...]:
        try:
            _, *parts = self._ask("chunks", namespace, document_id)
        except NotFound:
            self._recall.forget(namespace, document_id)
            raise
        except CacheUnavailable as error:
            remembered = self._recall.get(namespace, document_id)
            if remembered is None:
                raise
            _say("a document is used as it was seen last", error)
            return remembered
        chunks = to_chunks(parts)
        self._recall.note(namespace, document_id, chunks)
        return chunks

    def page(
        self, namespace: str, *, after: int = 0, limit: int = 100, name: str | None = None
    ) -> DocumentPage:
        """Up to `limit` documents in order of registration, those called `name` if it is given."""
        _, items = self._run(
            "page", {"namespace": namespace, "after": after, "limit": limit, "name": name}
        )
        numbered = [to_document(item) for item in items]
        documents = tuple(document for _, document in numbered[:limit])
        return DocumentPage(documents, numbered[limit - 1][0] if len(numbered) > limit else None)

    def namespaces(self) -> tuple[str, ...]:
        """All namespaces that have documents, sorted."""
        with self.connection.asking() as client:
            names: Any = client.smembers(f"{self.connection.prefix}namespaces")
        return tuple(sorted(namespace.decode() for namespace in names))

    def update(
        self, namespace: str, document_id: str, changes: Changes, max_pinned_tokens: int
    ) -> Document:
        """The document with all the changes made, or none of them if a pin is refused."""
        limits = {"changes": changes, "max_pinned_tokens": max_pinned_tokens}
        reply = self._ask("update", namespace, document_id, limits)
        _refuse_pin(reply, max_pinned_tokens)
        return to_document(reply[1])[1]

    def touch(self, namespace: str, document_ids: Iterable[str]) -> None:
        """Note that these were used just now; unknown ids, or an absent Redis, are passed over."""
        try:
            self._run("touch", {"namespace": namespace, "ids": list(document_ids)})
        except CacheUnavailable as error:
            _say("the use of documents was not noted", error)

    def delete(self, namespace: str, document_id: str) -> tuple[str, ...]:
        """Forget the document; the chunk keys now unnamed. NotFound if there is none."""
        self._recall.forget(namespace, document_id)
        _, gone = self._ask("delete", namespace, document_id)
        return tuple(sorted(key.decode() for key in gone))

    def sweep(self) -> None:
        """Unpin all documents whose time is over; begin it anew if the clock was set back since."""
        self._run("sweep", {})

    def pinned_chunk_keys(self) -> frozenset[str]:
        """Keys of the compiled chunks of pinned documents; while Redis is away, as known last."""
        try:
            _, *keys = self._run("pinned_keys", {})
        except CacheUnavailable as error:
            _say("pins are used as they were known last", error)
        else:
            self._pinned = frozenset(key.decode() for key in keys)
        return self._pinned

    def unnamed(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of the keys that no document's chunks carry, sorted."""
        asked = set(keys)
        return tuple(sorted(asked.difference(self.named(asked))))

    def named(self, keys: Collection[str]) -> dict[str, str]:
        """Those of the keys that some document's chunks carry, each with its namespace."""
        asked = list(keys)
        _, *namespaces = self._run("named", {"keys": asked})
        pairs = zip(asked, namespaces, strict=True)
        return {key: namespace.decode() for key, namespace in pairs if namespace}

    def take_claim(self, namespace: str, document_id: str, seconds: float) -> Claim | None:
        """The right to compile the document; None if there is nothing to do or another has it."""
        holder = uuid.uuid4().hex
        asked = {"holder": holder, "seconds": seconds}
        reply = self._ask("take_claim", namespace, document_id, asked)
        if reply[0] == b"taken":
            return None
        number, *parts = reply[1:]
        return Claim(namespace, document_id, int(number), holder, seconds, to_chunks(parts))

    def record_chunk(self, claim: Claim, position: int, key: str) -> None:
        """Note a compiled chunk and move the claim's deadline; ClaimLost, or nothing."""
        noted = {"position": position, "key": key, "seconds": claim.seconds}
        self._hold("record_chunk", claim, noted)

    def renew_claim(self, claim: Claim) -> None:
        """Move the claim's deadline, for its holder is at work; ClaimLost, or nothing."""
        self._hold("renew_claim", claim, {"seconds": claim.seconds})

    def finish_claim(
        self, claim: Claim, failure: str | None = None, last: CompiledChunk | None = None
    ) -> Document:
        """The document, ready or failed, its last chunk noted; ClaimLost, or nothing."""
        state = State.READY if failure is None else State.FAILED
        ended = {"state": state, "failure": failure, "last": last and vars(last)}
        return to_document(self._hold("finish_claim", claim, ended)[1])[1]

    def _run(self, operation: str, arguments: Mapping[str, object]) -> list[Any]:
        return self.connection.run(self._script, operation, arguments)

    def _ask(
        self,
        operation: str,
        namespace: str,
        document_id: str,
        arguments: Mapping[str, object] | None = None,
    ) -> list[Any]:
        place = {"namespace": namespace, "id": document_id}
        reply = self._run(operation, {**place, **(arguments or {})})
        if reply[0] == b"missing":
            raise unknown_document(namespace, document_id)
        return reply

    def _hold(self, operation: str, claim: Claim, arguments: Mapping[str, object]) -> list[Any]:
        held = {"number": claim.number, "holder": claim.holder}
        reply = self._run(operation, {**held, **arguments})
        if reply[0] == b"lost":
            raise claim_lost(claim)
        return reply


def _say(what: str, error: CacheUnavailable) -> None:
    level = logging.DEBUG if isinstance(error, StillUnavailable) else logging.WARNING
    _log.log(level, "%s: %s", what, error)


def _refuse_pin(reply: list[Any], max_pinned_tokens: int) -> None:
    if reply[0] == b"pins":
        check_pin_fits(int(reply[2]), int(reply[1]), max_pinned_tokens)
        raise AssertionError("the script refuses a pin where Python does")

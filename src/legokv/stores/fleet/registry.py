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
from legokv.stores.fleet.address import STALE_SECONDS
from legokv.stores.fleet.connection import Connection, Script
from legokv.stores.fleet.deletions import DeletionWatch
from legokv.stores.fleet.replies import Recall, to_chunks, to_document

_ADOPTED_AT_ONCE = 500

_log = logging.getLogger(__name__)


class RedisRegistry:
    """A DocumentRegistry that all servers of a fleet share; deadlines are by Redis' clock.

    While Redis is away, `chunks` gives what this process has seen and nobody has deleted, for
    `stale_seconds` at most. `pinned_chunk_keys` gives what it knew last; all else is
    CacheUnavailable.
    """

    def __init__(self, connection: Connection, stale_seconds: float = STALE_SECONDS) -> None:
        self.connection = connection
        self._stale_seconds = stale_seconds
        self._script = Script("documents")
        self._recall = Recall()
        self._deletions = DeletionWatch(connection, self._recall)
        self._pinned: frozenset[str] = frozenset()

    def close(self) -> None:
        """Close the connection."""
        self._deletions.close()
        self.connection.close()

    def hear_deletions(self) -> None:
        """Be known as one who listens, before there is anything to remember."""
        self._deletions.start()

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
            # As text: the record is read as text, by servers of before there were heads too.
            "head": token_blob(new.head).hex(),
            "changes": changes,
            "max_pinned_tokens": max_pinned_tokens,
            "quota": quota and {**vars(quota), "document_bytes": DOCUMENT_BYTES},
        }
        blobs = map(token_blob, new.chunks)
        reply = self._run("register", fields, *blobs)
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
        num_forgotten = self._recall.num_forgotten
        try:
            _, *parts = self._ask("chunks", namespace, document_id)
        except NotFound:
            self._recall.forget(namespace, document_id)
            raise
        except CacheUnavailable as error:
            remembered = self._recall.get(namespace, document_id)
            if remembered is None:
                raise
            self._refuse_stale(document_id, error)
            _say("a document is used as it was seen last", error)
            return remembered
        chunks = to_chunks(parts)
        self._recall.note(namespace, document_id, chunks, num_forgotten)
        self._deletions.start()
        return chunks

    def _refuse_stale(self, document_id: str, error: CacheUnavailable) -> None:
        """CacheUnavailable if a deletion may have gone unheard for too long."""
        seconds = self.connection.silent_seconds
        if seconds > self._stale_seconds:
            raise CacheUnavailable(
                f"document {document_id[:80]!r} may have been deleted elsewhere: its registry has "
                f"not answered for {seconds:.0f} s, and documents are answered without it for "
                f"{self._stale_seconds:g} s (--redis-stale-seconds): {error}"
            ) from error

    def page(
        self,
        namespace: str,
        *,
        after: int | str = 0,
        limit: int = 100,
        name: str | None = None,
        newest_first: bool = False,
    ) -> DocumentPage:
        """Up to `limit` documents in order of registration, or newest first; those called `name` if
        it is given.

        `after` is a page's `next_after`, or a document's id: NotFound if that is not there.
        """
        choices = {"limit": limit, "name": name, "newest_first": newest_first}
        if isinstance(after, str):
            _, items = self._ask("page", namespace, after, choices)
        else:
            _, items = self._run("page", {"namespace": namespace, "after": after, **choices})
        numbered = [to_document(item) for item in items]
        documents = tuple(document for _, document in numbered[:limit])
        return DocumentPage(documents, numbered[limit - 1][0] if len(numbered) > limit else None)

    def namespaces(self) -> tuple[str, ...]:
        """All namespaces that have documents, sorted."""
        _, *names = self._run("namespaces", {})
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
        """Forget the document; the chunk keys now unnamed. NotFound if there is none.

        All processes that remember it hear of it before this returns, or soon after.
        """
        self._recall.forget(namespace, document_id)
        try:
            _, gone = self._ask("delete", namespace, document_id)
        except CacheUnavailable as error:
            raise CacheUnavailable(
                f"document {document_id[:80]!r} was not deleted, and servers that know it go on "
                f"answering from it: {error}; delete it again"
            ) from error
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

    def _run(self, operation: str, arguments: Mapping[str, object], *blobs: bytes) -> list[Any]:
        """The operation's reply; indexes that Redis lost, or that an older version made, are mended
        first.
        """
        reply = self.connection.run(self._script, operation, arguments, *blobs)
        if reply[0] == b"unmended":
            self._mend()
            reply = self.connection.run(self._script, operation, arguments, *blobs)
        if reply[0] == b"unmended":
            raise CacheUnavailable(
                f"{self.connection.shown_url} lost the list of documents again while it was made "
                "anew: it evicts what it must keep; set maxmemory-policy noeviction"
            )
        return reply

    def _mend(self) -> None:
        """Make the indexes anew from the documents that are there."""
        place = f"{self.connection.prefix}document/"
        with self.connection.asking() as client:
            numbers = [n.decode().removeprefix(place) for n in client.scan_iter(f"{place}*", 1000)]
        for start in range(0, len(numbers), _ADOPTED_AT_ONCE):
            some = numbers[start : start + _ADOPTED_AT_ONCE]
            self.connection.run(self._script, "adopt", {"numbers": some})
        self.connection.run(self._script, "mended", {})
        if numbers:
            _log.warning("the list of %d documents in Redis was made anew", len(numbers))

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
        if reply[0] == b"lost":
            raise NotFound(
                f"document {document_id[:80]!r} was lost: {self.connection.shown_url} dropped a "
                "part of it; create it again"
            )
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

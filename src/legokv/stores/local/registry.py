"""The one truth about registered documents, for several processes and across restarts. No KV."""

import logging
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from legokv.documents.document import (
    Changes,
    Document,
    DocumentPage,
    NamespaceQuota,
    NewDocument,
    State,
    StoredChunk,
)
from legokv.documents.protocol import Claim, CompiledChunk
from legokv.errors import Busy, CacheUnavailable
from legokv.stores.local import claims, document_rows
from legokv.stores.local.database import Database

_SWEEP_SECONDS = 0.05

_log = logging.getLogger(__name__)


class Registry:
    """Documents by (namespace, id). One past its expiry holds no pin; it stays until deleted.

    Methods that end documents give the keys of chunks that no document names any more: their
    stored KV may go. What is compiled by whom is in `legokv.stores.local.claims`.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float] = time.time) -> "Registry":
        """The registry in the file `path`, made if missing; EngineMismatch for another version."""
        return cls(Database.open(path, clock))

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def register(
        self,
        new: NewDocument,
        changes: Changes,
        max_pinned_tokens: int,
        quota: NamespaceQuota | None = None,
    ) -> tuple[Document, bool]:
        """The document of this content, and whether it is new. All or nothing.

        InvalidRequest or Busy if a pin or a new document would pass its limit. Content that is
        there already keeps its chunks and state, except that a failed document may be compiled
        again and an expired one has no expiry now; then `changes` apply to it.
        """
        now = self.database.now()
        with self.database.transaction() as sql:
            row = document_rows.find(sql, new.namespace, new.id)
            if row is None and quota is not None:
                document_rows.check_quota(sql, new, quota)
            number = document_rows.insert(sql, new, now) if row is None else row["number"]
            if row is not None and document_rows.is_expired(row, now):
                document_rows.change(sql, number, {"ttl_seconds": None, "pinned": False}, now)
            sql.execute(
                "UPDATE documents SET state = ?, failure = NULL WHERE number = ? AND state = ?",
                (State.REGISTERED, number, State.FAILED),
            )
            if changes.get("pinned"):
                document_rows.check_pin(sql, number, max_pinned_tokens, now)
            document_rows.change(sql, number, changes, now)
            document = document_rows.to_document(document_rows.require(sql, new.namespace, new.id))
            return document, row is None

    def get(self, namespace: str, document_id: str) -> Document:
        """NotFound if the namespace has no such document."""
        with self.database.snapshot() as sql:
            return document_rows.to_document(document_rows.require(sql, namespace, document_id))

    def text(self, namespace: str, document_id: str) -> str:
        """The normalised text; NotFound if the namespace has no such document."""
        with self.database.snapshot() as sql:
            text: str = document_rows.require(sql, namespace, document_id)["text"]
            return text

    def chunks(self, namespace: str, *document_ids: str) -> tuple[StoredChunk, ...]:
        """The chunks in order, as of one moment; NotFound for a document that is not there."""
        with self.database.snapshot() as sql:
            rows = document_rows.chunks(sql, namespace, document_ids)
        return document_rows.to_chunks(rows)

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
        Documents registered or deleted meanwhile shift nothing.
        """
        with self.database.snapshot() as sql:
            if isinstance(after, str):
                after = int(document_rows.require(sql, namespace, after)["number"])
            rows = document_rows.page(sql, namespace, after, name, newest_first=newest_first)
            first, more = rows.fetchmany(limit), rows.fetchone() is not None
        return DocumentPage(
            tuple(map(document_rows.to_document, first)), first[-1]["number"] if more else None
        )

    def namespaces(self) -> tuple[str, ...]:
        """All namespaces that have documents, sorted."""
        with self.database.snapshot() as sql:
            rows = sql.execute("SELECT DISTINCT namespace FROM documents ORDER BY namespace")
            return tuple(namespace for (namespace,) in rows)

    def update(
        self, namespace: str, document_id: str, changes: Changes, max_pinned_tokens: int
    ) -> Document:
        """The document with all the changes made, or none of them if a pin is refused."""
        now = self.database.now()
        with self.database.transaction() as sql:
            number = document_rows.require(sql, namespace, document_id)["number"]
            if changes.get("pinned"):
                document_rows.check_pin(sql, number, max_pinned_tokens, now)
            document_rows.change(sql, number, changes, now)
            return document_rows.to_document(document_rows.require(sql, namespace, document_id))

    def touch(self, namespace: str, document_ids: Iterable[str]) -> None:
        """Note that these were used just now; unknown ids, or a full disk, are passed over."""
        now = self.database.now()
        used = [(now, namespace, document_id) for document_id in document_ids]
        try:
            with self.database.transaction() as sql:
                sql.executemany(
                    "UPDATE documents SET last_used_at = ? WHERE namespace = ? AND id = ?", used
                )
        except (Busy, CacheUnavailable) as error:
            _log.warning("the use of documents was not noted: %s", error)

    def delete(self, namespace: str, document_id: str) -> tuple[str, ...]:
        """Forget the document; the chunk keys now unnamed. NotFound if there is none.

        On a full disk too.
        """
        with self.database.transaction(frees_room=True) as sql:
            row = document_rows.require(sql, namespace, document_id)
            return document_rows.delete(sql, [row["number"]])

    def sweep(self) -> None:
        """Unpin all documents whose time is over, so that their chunks may be evicted.

        If the clock was set back, times to live begin anew: none ends early, none lasts for ever.
        While others write, nothing is done: it is for readers too, and the next one tries again.
        """
        now = self.database.now()
        with self.database.snapshot() as sql:
            if not (
                document_rows.expired_pins(sql, now) or document_rows.expiries_set_ahead(sql, now)
            ):
                return  # the usual case takes no writer's lock
        with suppress(Busy), self.database.transaction(seconds=_SWEEP_SECONDS) as sql:
            for number, ttl_seconds in document_rows.expiries_set_ahead(sql, now):
                document_rows.change(sql, number, {"ttl_seconds": ttl_seconds}, now)
            for number in document_rows.expired_pins(sql, now):
                document_rows.change(sql, number, {"pinned": False}, now)

    def pinned_chunk_keys(self) -> frozenset[str]:
        """Keys of the compiled chunks of pinned documents, in all namespaces."""
        with self.database.snapshot() as sql:
            rows = sql.execute(
                # In this order: few documents are pinned, and an index has them.
                "SELECT DISTINCT key FROM documents CROSS JOIN chunks ON document = number"
                " WHERE pinned = 1 AND key IS NOT NULL AND coalesce(expires_at > ?, 1)",
                (self.database.now(),),
            )
            return frozenset(key for (key,) in rows)

    def unnamed(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of the keys that no document's chunks carry."""
        with self.database.snapshot() as sql:
            return document_rows.unnamed(sql, tuple(keys))

    def named(self, keys: Collection[str]) -> dict[str, str]:
        """Those of the keys that some document's chunks carry, each with its namespace."""
        with self.database.snapshot() as sql:
            return document_rows.named(sql, keys)

    def now(self) -> float:
        """Unix seconds by the clock that expiry and deadlines are told by."""
        return self.database.now()

    def take_claim(self, namespace: str, document_id: str, seconds: float) -> Claim | None:
        """The right to compile the document; None if there is nothing to do or another has it."""
        return claims.take_claim(self.database, namespace, document_id, seconds)

    def record_chunk(self, claim: Claim, position: int, key: str) -> None:
        """Note a compiled chunk and move the claim's deadline; ClaimLost, or nothing."""
        claims.record_chunk(self.database, claim, position, key)

    def renew_claim(self, claim: Claim) -> None:
        """Move the claim's deadline, for its holder is at work; ClaimLost, or nothing."""
        claims.renew_claim(self.database, claim)

    def finish_claim(
        self, claim: Claim, failure: str | None = None, last: CompiledChunk | None = None
    ) -> Document:
        """The document, ready or failed, its last chunk noted; ClaimLost, or nothing."""
        return claims.finish_claim(self.database, claim, failure, last)

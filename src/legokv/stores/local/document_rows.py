"""The registry's SQL, one statement or two at a time, inside a transaction somebody else opened."""

import sqlite3
from collections.abc import Iterable, Iterator
from types import NoneType

from legokv.chunks.chunk import token_blob, tokens_from_blob
from legokv.documents.document import (
    Changes,
    Document,
    DocumentsSize,
    NamespaceQuota,
    NewDocument,
    State,
    StoredChunk,
)
from legokv.documents.protocol import check_pin_fits, check_quota_fits, unknown_document
from legokv.stores.local.database import damaged_row

TOKEN_BYTES = 4
_LATEST = 1e15
"""In Unix seconds."""
_TIME = (int, float)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "namespace", "text", "state"), (str,)),
    **dict.fromkeys(("number", "num_bytes", "num_tokens", "pinned"), (int,)),
    **dict.fromkeys(("name", "failure", "claim"), (str, NoneType)),
    "created_at": _TIME,
    **dict.fromkeys(("expires_at", "last_used_at", "claim_deadline"), (*_TIME, NoneType)),
}
MAX_NUMBER = 2**63 - 1
_DOCUMENT = """
SELECT *,
    (SELECT count(*) FROM chunks WHERE document = number) AS num_chunks,
    (SELECT count(key) FROM chunks WHERE document = number) AS compiled_chunks
FROM documents
"""


def find(sql: sqlite3.Connection, namespace: str, document_id: str) -> sqlite3.Row | None:
    """The document's row, expired or not."""
    row: sqlite3.Row | None = sql.execute(
        f"{_DOCUMENT} WHERE namespace = ? AND id = ?", (namespace, document_id)
    ).fetchone()
    return row if row is None else _sound(row)


def _sound(row: sqlite3.Row) -> sqlite3.Row:
    """The document's row; CacheUnavailable if a value in it is none."""
    for name, kinds in _KINDS.items():
        value = row[name]
        if not isinstance(value, kinds) or (isinstance(value, float) and not abs(value) < _LATEST):
            raise damaged_row("documents", name, value)
    if row["state"] not in list(State):
        raise damaged_row("documents", "state", row["state"])
    return row


def require(sql: sqlite3.Connection, namespace: str, document_id: str) -> sqlite3.Row:
    """The document's row, expired or not; NotFound if there is none."""
    row = find(sql, namespace, document_id)
    if row is None:
        raise unknown_document(namespace, document_id)
    return row


def chunks(
    sql: sqlite3.Connection, namespace: str, document_ids: Iterable[str]
) -> list[sqlite3.Row]:
    """(token_ids, key, position, head) of the documents' chunks; NotFound for one not there."""
    all_rows: list[sqlite3.Row] = []
    for document_id in document_ids:
        rows = sql.execute(
            "SELECT token_ids, key, position, head FROM documents JOIN chunks ON document = number"
            " WHERE namespace = ? AND id = ? ORDER BY position",
            (namespace, document_id),
        ).fetchall()
        if not rows:
            require(sql, namespace, document_id)
        all_rows += rows
    return all_rows


def to_chunks(rows: Iterable[sqlite3.Row]) -> tuple[StoredChunk, ...]:
    """The rows of `chunks` as plain data."""
    chunks: list[StoredChunk] = []
    for blob, key, place, head_blob in rows:
        # A document has one head: its chunks share it.
        head = (
            chunks[-1].head if place and chunks else _tokens(head_blob or b"", "documents", "head")
        )
        if not isinstance(key, str | None):
            raise damaged_row("chunks", "key", key)
        if not isinstance(place, int):
            raise damaged_row("chunks", "position", place)
        chunks.append(StoredChunk(_tokens(blob, "chunks", "token_ids"), key, place, head))
    return tuple(chunks)


def _tokens(blob: object, table: str, column: str) -> tuple[int, ...]:
    if not isinstance(blob, bytes) or len(blob) % TOKEN_BYTES:
        raise damaged_row(table, column, blob)
    return tokens_from_blob(blob)


def is_expired(row: sqlite3.Row, now: float) -> bool:
    """Whether the document's time is over."""
    return row["expires_at"] is not None and row["expires_at"] <= now


def expired_pins(sql: sqlite3.Connection, now: float) -> list[int]:
    """Numbers of the pinned documents whose time is over."""
    rows = sql.execute("SELECT number FROM documents WHERE pinned AND expires_at <= ?", (now,))
    return [number for (number,) in rows]


def expiries_set_ahead(sql: sqlite3.Connection, now: float) -> list[tuple[int, float]]:
    """(number, ttl) of documents with an expiry that today's clock would not have set so far off.

    It was set before the clock was set back.
    """
    rows = sql.execute(
        "SELECT number, ttl_seconds FROM documents WHERE expires_at > ? + ttl_seconds", (now,)
    )
    return [(number, ttl) for number, ttl in rows]


def insert(sql: sqlite3.Connection, new: NewDocument, now: float) -> int:
    """The number of the row made for the document and its chunks."""
    number = sql.execute(
        "INSERT INTO documents"
        " (namespace, id, text, num_bytes, num_tokens, state, created_at, head)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
        (
            new.namespace,
            new.id,
            new.text,
            new.size.text_bytes,
            new.num_tokens,
            State.REGISTERED,
            now,
            token_blob(new.head),
        ),
    ).fetchone()["number"]
    sql.executemany(
        "INSERT INTO chunks (document, position, token_ids) VALUES (?, ?, ?)",
        [(number, position, token_blob(ids)) for position, ids in enumerate(new.chunks)],
    )
    return int(number)


def change(sql: sqlite3.Connection, number: int, changes: Changes, now: float) -> None:
    """Make the changes to one document."""
    if "name" in changes:
        sql.execute("UPDATE documents SET name = ? WHERE number = ?", (changes["name"], number))
    if "ttl_seconds" in changes:
        ttl = changes["ttl_seconds"]
        expires_at = None if ttl is None else now + ttl
        sql.execute(
            "UPDATE documents SET expires_at = ?, ttl_seconds = ? WHERE number = ?",
            (expires_at, ttl, number),
        )
    if "pinned" in changes:
        sql.execute("UPDATE documents SET pinned = ? WHERE number = ?", (changes["pinned"], number))


def check_pin(sql: sqlite3.Connection, number: int, max_pinned_tokens: int, now: float) -> None:
    """InvalidRequest or Busy if pinning this document would pass the cap for pins."""
    (tokens,) = sql.execute(
        "SELECT num_tokens FROM documents WHERE number = ?", (number,)
    ).fetchone()
    (others,) = sql.execute(
        "SELECT coalesce(sum(num_tokens), 0) FROM documents"
        " WHERE pinned AND number != ? AND coalesce(expires_at > ?, 1)",
        (number, now),
    ).fetchone()
    check_pin_fits(tokens, others, max_pinned_tokens)


def check_quota(sql: sqlite3.Connection, new: NewDocument, quota: NamespaceQuota) -> None:
    """InvalidRequest or Busy if a new document would pass its namespace's quota."""
    row = sql.execute(
        "SELECT count(*), coalesce(sum(num_tokens), 0), coalesce(sum(num_bytes), 0)"
        " FROM documents WHERE namespace = ?",
        (new.namespace,),
    ).fetchone()
    check_quota_fits(new.size, DocumentsSize(*row), quota)


def delete(sql: sqlite3.Connection, numbers: Iterable[int]) -> tuple[str, ...]:
    """Delete these documents; the keys their chunks had and no other document's have."""
    keys: set[str] = set()
    for number in numbers:
        rows = sql.execute(
            "SELECT key FROM chunks WHERE document = ? AND key IS NOT NULL", (number,)
        )
        keys.update(key for (key,) in rows)
        sql.execute("DELETE FROM documents WHERE number = ?", (number,))
    gone = unnamed(sql, keys)
    # In the same transaction: whatever happens to the process now, the files go with the document.
    sql.executemany("UPDATE stored_chunks SET dropped = 1 WHERE key = ?", [(key,) for key in gone])
    return gone


def unnamed(sql: sqlite3.Connection, keys: Iterable[str]) -> tuple[str, ...]:
    """Those of the keys that no chunk carries, sorted."""
    return tuple(sorted(set(keys).difference(_carried(sql, keys))))


def named(sql: sqlite3.Connection, keys: Iterable[str]) -> dict[str, str]:
    """Those of the keys that some chunk carries, each with its namespace."""
    owners: dict[str, str] = {}
    for key in keys:
        row = sql.execute(
            "SELECT namespace FROM chunks JOIN documents ON document = number"
            " WHERE key = ? LIMIT 1",
            (key,),
        ).fetchone()
        if row is not None:
            owners[key] = row["namespace"]
    return owners


def _carried(sql: sqlite3.Connection, keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        if sql.execute("SELECT 1 FROM chunks WHERE key = ? LIMIT 1", (key,)).fetchone():
            yield key


def page(
    sql: sqlite3.Connection, namespace: str, after: int, name: str | None, *, newest_first: bool
) -> sqlite3.Cursor:
    """Rows of the namespace's documents behind number `after`, in order, those named `name`.

    Newest first, 0 is before the newest.
    """
    side, order = ("<", "DESC") if newest_first else (">", "ASC")
    edge = MAX_NUMBER if newest_first and not after else after
    return sql.execute(
        f"{_DOCUMENT} WHERE namespace = ? AND number {side} ? AND name IS coalesce(?, name)"
        f" ORDER BY number {order}",
        (namespace, edge, name),
    )


def to_document(row: sqlite3.Row) -> Document:
    """The row as plain data."""
    _sound(row)
    return Document(
        id=row["id"],
        namespace=row["namespace"],
        name=row["name"],
        state=State(row["state"]),
        failure=row["failure"],
        num_bytes=row["num_bytes"],
        num_tokens=row["num_tokens"],
        num_chunks=row["num_chunks"],
        compiled_chunks=row["compiled_chunks"],
        pinned=bool(row["pinned"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
    )

"""Single flight: of all threads and processes that want a document compiled, one at a time does.

A claim is a row's mark with a deadline. Its holder moves the deadline while it works; a holder
that died stops doing so, and another takes the document over where it stood.
"""

import sqlite3
import uuid

from legokv.documents.document import Document, State
from legokv.documents.protocol import Claim, CompiledChunk, claim_lost
from legokv.stores.local import document_rows
from legokv.stores.local.database import Database


def take_claim(
    database: Database, namespace: str, document_id: str, seconds: float
) -> Claim | None:
    """The claim, for `seconds` from now; None if there is nothing to do or another has it.

    A document is to be compiled when it is registered, or compiling past its claim's deadline.
    NotFound if the namespace has no such document.
    """
    now = database.now()
    with database.transaction() as sql:
        row = document_rows.require(sql, namespace, document_id)
        # A deadline further off than a claim lasts was written before the clock was set back.
        deadline = row["claim_deadline"] or 0.0
        holds = row["state"] == State.COMPILING and now < deadline <= now + seconds
        left_behind = row["state"] == State.COMPILING and not holds
        if row["state"] != State.REGISTERED and not left_behind:
            return None
        number, holder = row["number"], uuid.uuid4().hex
        sql.execute(
            "UPDATE documents SET state = ?, claim = ?, claim_deadline = ? WHERE number = ?",
            (State.COMPILING, holder, now + seconds, number),
        )
        rows = document_rows.chunks(sql, namespace, [document_id])
    chunks = document_rows.to_chunks(rows)
    return Claim(namespace, document_id, number, holder, seconds, chunks)


def record_chunk(database: Database, claim: Claim, position: int, key: str) -> None:
    """Note that a chunk is compiled under `key`, and move the deadline; ClaimLost, or nothing."""
    with database.transaction() as sql:
        _require_held(sql, claim)
        _note(sql, claim, CompiledChunk(position, key))
        _move_deadline(sql, claim, database.now())


def renew_claim(database: Database, claim: Claim) -> None:
    """Move the deadline to the claim's seconds from now; ClaimLost, or nothing."""
    with database.transaction() as sql:
        _require_held(sql, claim)
        _move_deadline(sql, claim, database.now())


def finish_claim(
    database: Database,
    claim: Claim,
    failure: str | None = None,
    last: CompiledChunk | None = None,
) -> Document:
    """End the claim: the document is ready, with its `last` chunk noted, or failed for a reason.

    ClaimLost, or nothing.
    """
    state = State.READY if failure is None else State.FAILED
    with database.transaction() as sql:
        _require_held(sql, claim)
        if last is not None:
            _note(sql, claim, last)
        sql.execute(
            "UPDATE documents SET state = ?, failure = ?, claim = NULL, claim_deadline = NULL"
            " WHERE number = ?",
            (state, failure, claim.number),
        )
        row = document_rows.require(sql, claim.namespace, claim.document_id)
        return document_rows.to_document(row)


def _move_deadline(sql: sqlite3.Connection, claim: Claim, now: float) -> None:
    sql.execute(
        "UPDATE documents SET claim_deadline = ? WHERE number = ?",
        (now + claim.seconds, claim.number),
    )


def _note(sql: sqlite3.Connection, claim: Claim, chunk: CompiledChunk) -> None:
    sql.execute(
        "UPDATE chunks SET key = ? WHERE document = ? AND position = ?",
        (chunk.key, claim.number, chunk.position),
    )
    # Deleted with an earlier document of the same content, and named again before it went.
    sql.execute("UPDATE stored_chunks SET dropped = 0 WHERE key = ?", (chunk.key,))


def _require_held(sql: sqlite3.Connection, claim: Claim) -> None:
    held = sql.execute(
        "SELECT 1 FROM documents WHERE number = ? AND claim = ?", (claim.number, claim.holder)
    ).fetchone()
    if held is None:
        raise claim_lost(claim)

"""What the documents' script replies, as plain data. No connection here."""

from typing import Any

from legokv.documents.document import Document, State


def to_document(shown: list[Any]) -> tuple[int, Document]:
    """The document's number and the document."""
    number, compiled_chunks, *pairs = shown
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

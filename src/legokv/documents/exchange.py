"""Puts a cache's documents with their KV into an archive, and an archive's into a cache."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from legokv.chunks.chunk import chunk_key
from legokv.chunks.header import decode_header
from legokv.chunks.stored_form import EncodedChunk, decode_chunk, stored_bytes
from legokv.documents.archive import (
    ArchivedChunk,
    ArchivedDocument,
    Manifest,
    read_archive,
    write_archive,
)
from legokv.documents.cut import TextCodec, document_token_ids
from legokv.documents.document import (
    Changes,
    Document,
    NewDocument,
    State,
    check_namespace,
    normalise_text,
)
from legokv.documents.protocol import DocumentRegistry
from legokv.errors import ChunkUnreadable, EngineMismatch, InvalidRequest

_CLAIM_SECONDS = 60.0


class PortableTier(Protocol):
    """A tier whose chunks can be carried elsewhere in their stored form."""

    def open_content(self, key: str) -> BinaryIO | None:
        """The chunk's stored bytes from their start; None if they are not there."""

    def write_encoded(self, key: str, namespace: str, encoded: EncodedChunk) -> bool:
        """Keep stored bytes as they are; False if there is no room."""


@dataclass(frozen=True)
class Cache:
    """One model's documents and stored chunks, opened without its engine.

    tiers: where chunks are kept, the one to read from first before the others.
    """

    fingerprint: str
    registry: DocumentRegistry
    tiers: tuple[PortableTier, ...]
    codec: TextCodec


@dataclass(frozen=True)
class Exchanged:
    """What an archive got or gave. `unusable_chunks` are damaged, or had no room."""

    documents: int
    chunks: int
    unusable_chunks: int = 0


def documents_of(registry: DocumentRegistry, namespaces: tuple[str, ...]) -> Iterator[Document]:
    """All documents of these namespaces."""
    for namespace in namespaces:
        after: int | None = 0
        while after is not None:
            page = registry.page(namespace, after=after)
            yield from page.documents
            after = page.next_after


def export_documents(
    cache: Cache, path: Path, namespaces: tuple[str, ...], done: Callable[[int], object]
) -> Exchanged:
    """Write the namespaces' documents and what is stored of their KV to one file."""
    registered = documents_of(cache.registry, namespaces)
    manifest = Manifest(cache.fingerprint, tuple(_archived(cache, item) for item in registered))
    chunks = write_archive(path, manifest, _contents(cache, manifest.keys), done)
    return Exchanged(len(manifest.documents), chunks, len(manifest.keys) - chunks)


def import_documents(cache: Cache, path: Path, done: Callable[[int], object]) -> Exchanged:
    """Register an archive's documents and store their KV; those with all of it are ready.

    EngineMismatch for another model's archive, InvalidRequest for documents that are not what
    their texts give; then nothing is registered. Chunks that are damaged are left out.
    """
    items = read_archive(path)
    manifest = next(items)
    assert isinstance(manifest, Manifest), "an archive's first item is its manifest"
    if manifest.fingerprint != cache.fingerprint:
        raise EngineMismatch(
            f"{path} belongs to the model {manifest.fingerprint[:16]}, this engine is "
            f"{cache.fingerprint[:16]}: export it from a machine with the same engine"
        )
    news = [_checked(cache, document) for document in manifest.documents]
    owners = {
        chunk.key: (document.namespace, chunk.token_ids)
        for document in manifest.documents
        for chunk in document.chunks
    }
    for new, document in zip(news, manifest.documents, strict=True):
        cache.registry.register(new, _changes(document), 0)
    stored, num_read = set(), 0
    for item in items:
        assert not isinstance(item, Manifest), "an archive has one manifest"
        key, content = item
        num_read += 1
        done(len(content))
        if key in owners and _store(cache, key, *owners[key], content):
            stored.add(key)
    for document in manifest.documents:
        _finish(cache, document, stored)
    return Exchanged(len(news), len(stored), num_read - len(stored))


def _contents(cache: Cache, keys: Iterable[str]) -> Iterator[tuple[str, BinaryIO]]:
    """The stored bytes of the chunks that are kept; the other machine compiles the rest."""
    for key in keys:
        content = _content(cache.tiers, key)
        if content is not None:
            with content:
                yield key, content


def _content(tiers: Iterable[PortableTier], key: str) -> BinaryIO | None:
    for tier in tiers:
        content = tier.open_content(key)
        if content is not None:
            return content
    return None


def _archived(cache: Cache, document: Document) -> ArchivedDocument:
    registry, namespace = cache.registry, document.namespace
    left = None
    if document.expires_at is not None:
        left = max(0.0, document.expires_at - registry.now())
    return ArchivedDocument(
        namespace=namespace,
        id=document.id,
        name=document.name,
        text=registry.text(namespace, document.id),
        ttl_seconds=left,
        chunks=tuple(
            ArchivedChunk(chunk.token_ids, chunk.key)
            for chunk in registry.chunks(namespace, document.id)
        ),
    )


def _checked(cache: Cache, document: ArchivedDocument) -> NewDocument:
    """The document to register; its id, text and token ids must be each other's."""
    spans = tuple(chunk.token_ids for chunk in document.chunks)
    new = NewDocument(check_namespace(document.namespace), document.text, spans)
    ids = tuple(token for span in spans for token in span)
    whole = normalise_text(document.text) == document.text != "" and all(spans)
    if not whole or new.id != document.id or document_token_ids(new.text, cache.codec) != ids:
        raise InvalidRequest(f"document {document.id[:80]!r} is not what its text gives")
    return new


def _changes(document: ArchivedDocument) -> Changes:
    changes: Changes = {"ttl_seconds": document.ttl_seconds}
    if document.name is not None:
        changes["name"] = document.name
    return changes


def _store(
    cache: Cache, key: str, namespace: str, token_ids: tuple[int, ...], content: bytearray
) -> bool:
    try:
        decode_chunk(content, key, token_ids)
        dtype = decode_header(content)[0].layout.kv_dtype
    except ChunkUnreadable:
        return False
    if chunk_key(cache.fingerprint, dtype, namespace, token_ids) != key:
        return False
    encoded = stored_bytes(content)
    # All of them, not until the first that keeps it.
    kept = [tier.write_encoded(key, namespace, encoded) for tier in cache.tiers]
    return any(kept)


def _finish(cache: Cache, document: ArchivedDocument, stored: set[str]) -> None:
    """Mark a document ready whose chunks are all stored, unless somebody compiles it now."""
    keys = [chunk.key for chunk in document.chunks if chunk.key in stored]
    registered = cache.registry.get(document.namespace, document.id)
    if len(keys) < len(document.chunks) or registered.state == State.READY:
        return
    claim = cache.registry.take_claim(document.namespace, document.id, _CLAIM_SECONDS)
    if claim is None:
        return
    for position, key in enumerate(keys):
        cache.registry.record_chunk(claim, position, key)
    cache.registry.finish_claim(claim)

"""Puts a cache's documents with their KV into an archive, and an archive's into a cache."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from legokv.chunks.chunk import chunk_key, token_digest
from legokv.chunks.header import kv_shape, max_stored_bytes, stored_dtype_names
from legokv.chunks.stored_form import EncodedChunk, check_chunk, is_finite, stored_bytes
from legokv.documents.archive import (
    MAX_ARCHIVE_CHUNKS,
    Archive,
    ArchivedChunk,
    ArchivedDocument,
    Manifest,
    open_archive,
    write_archive,
)
from legokv.documents.cut import TextCodec, is_tokenised
from legokv.documents.document import (
    MAX_NAME_LEN,
    MAX_TTL_SECONDS,
    Changes,
    Document,
    DocumentLimits,
    NewDocument,
    State,
    check_namespace,
    normalise_text,
)
from legokv.documents.protocol import DocumentRegistry
from legokv.errors import ChunkUnreadable, EngineMismatch, InvalidRequest, exact
from legokv.model.config import ModelConfig

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

    tiers: where chunks are kept, the one to read from first before the others. limits: what the
    machine's server takes of a document; imports are held to it and to its namespaces' quota.
    """

    fingerprint: str
    model: ModelConfig
    registry: DocumentRegistry
    tiers: tuple[PortableTier, ...]
    codec: TextCodec
    limits: DocumentLimits


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

    All that can be wrong with the file and its documents is looked for before the first is
    registered: EngineMismatch for another model's archive, InvalidRequest or Busy with a sentence
    for one that is not as this program writes it, for documents that are not what their texts give
    or that `create` would refuse. Chunks that are damaged or no KV of this model are left out.
    """
    with open_archive(path) as archive:
        if archive.fingerprint != cache.fingerprint:
            raise EngineMismatch(
                f"{path} belongs to the model {archive.fingerprint[:16]}, this engine is "
                f"{cache.fingerprint[:16]}: export it from a machine with the same engine"
            )
        expected = _expected(cache, archive)
        num_documents = _register_all(cache, archive)
        stored, num_read = set(), 0
        for member in archive.chunks(_most_bytes(cache, expected)):
            num_read += 1
            content = archive.content(member)
            done(member.size)
            if _store(cache, member.key, expected[member.key], content):
                stored.add(member.key)
        for document in _documents(cache, archive):
            _finish(cache, document, stored)
    return Exchanged(num_documents, len(stored), num_read - len(stored))


@dataclass(frozen=True)
class _ExpectedChunk:
    """What KV under a key must be of; `kv_dtype` None: the key is not that of its tokens."""

    namespace: str
    num_tokens: int
    token_digest: str
    kv_dtype: str | None


def _expected(cache: Cache, archive: Archive) -> dict[str, _ExpectedChunk]:
    """The chunks that the documents name, when all documents and all members' sizes are right."""
    expected: dict[str, _ExpectedChunk] = {}
    for document in _documents(cache, archive):
        _checked(cache, document)
        before: tuple[str | None, ...] = _head_keys(cache, document)
        for chunk in document.chunks:
            if chunk.key is not None:
                expected[chunk.key] = _expected_chunk(cache, document.namespace, chunk, before)
            before = (chunk.key,)
        if len(expected) > MAX_ARCHIVE_CHUNKS:
            raise InvalidRequest(f"an archive of more than {MAX_ARCHIVE_CHUNKS} chunks is refused")
    for _ in archive.chunks(_most_bytes(cache, expected)):
        pass
    return expected


def _head_keys(cache: Cache, document: ArchivedDocument) -> tuple[str, ...]:
    """Keys that the document's head has, one for each type that KV is stored as; none without."""
    if not document.head:
        return ()
    return tuple(
        chunk_key(cache.fingerprint, kv_dtype, document.namespace, document.head)
        for kv_dtype in stored_dtype_names()
    )


def _expected_chunk(
    cache: Cache, namespace: str, chunk: ArchivedChunk, before: tuple[str | None, ...]
) -> _ExpectedChunk:
    """The chunk was compiled behind one of those `before`, or alone: once all were."""
    ids = chunk.token_ids
    keys = {
        chunk_key(cache.fingerprint, kv_dtype, namespace, ids, behind): kv_dtype
        for kv_dtype in stored_dtype_names()
        for behind in (*before, None)
    }
    kv_dtype = keys.get(chunk.key or "")
    return _ExpectedChunk(namespace, len(ids), token_digest(ids), kv_dtype)


def _most_bytes(cache: Cache, expected: Mapping[str, _ExpectedChunk]) -> Mapping[str, int]:
    return {key: max_stored_bytes(cache.model, chunk.num_tokens) for key, chunk in expected.items()}


def _documents(cache: Cache, archive: Archive) -> Iterator[ArchivedDocument]:
    limits = cache.limits
    # A byte of text is at most six of JSON; a token is one of a chunk of its own at worst.
    most = 6 * limits.max_document_bytes + 128 * limits.max_document_tokens + 2**16
    return archive.documents(most)


def _register_all(cache: Cache, archive: Archive) -> int:
    """Register the documents: how many. If one is refused, those that are new go again."""
    made: list[Document] = []
    number = 0
    try:
        for archived in _documents(cache, archive):
            new, quota = _checked(cache, archived), cache.limits.namespace_quota
            document, is_new = cache.registry.register(new, _changes(archived), 0, quota)
            made += [document] if is_new else []
            number += 1
    except BaseException:
        for document in made:
            cache.registry.delete(document.namespace, document.id)
        raise
    return number


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
    chunks = registry.chunks(namespace, document.id)
    left = None
    if document.expires_at is not None:
        left = max(0.0, document.expires_at - registry.now())
    return ArchivedDocument(
        namespace=namespace,
        id=document.id,
        name=document.name,
        text=registry.text(namespace, document.id),
        ttl_seconds=left,
        chunks=tuple(ArchivedChunk(chunk.token_ids, chunk.key) for chunk in chunks),
        head=chunks[0].head if chunks else (),
    )


def _checked(cache: Cache, document: ArchivedDocument) -> NewDocument:
    """The document to register; it must be as `create` takes it, and its parts each other's."""
    spans = tuple(chunk.token_ids for chunk in document.chunks)
    check_namespace(document.namespace)
    _check_bounds(cache, document, spans)
    new = NewDocument(document.namespace, document.text, spans, document.head)
    ids = tuple(token for span in spans for token in span)
    whole = normalise_text(document.text) == document.text != "" and all(spans)
    if not whole or new.id != document.id or not is_tokenised(new.text, ids, cache.codec):
        raise InvalidRequest(f"document {document.id[:80]!r} is not what its text gives")
    return new


def _check_bounds(
    cache: Cache, document: ArchivedDocument, spans: tuple[tuple[int, ...], ...]
) -> None:
    limits, name = cache.limits, f"document {document.id[:80]!r}"
    bounds = (
        ("bytes", len(document.text.encode()), limits.max_document_bytes),
        ("tokens", sum(map(len, spans)), limits.max_document_tokens),
        ("tokens in a chunk", max(map(len, spans), default=0), cache.model.max_positions),
        ("tokens with its head", _with_head(document, spans), cache.model.context_len),
        ("characters in its name", len(document.name or ""), MAX_NAME_LEN),
    )
    for what, number, most in bounds:
        if number > most:
            raise InvalidRequest(f"{name} has {number} {what}, at most {most} fit")
    vocab_size = cache.model.vocab_size
    if max(document.head, default=0) >= vocab_size:
        raise InvalidRequest(
            f"{name} has token id {max(document.head)} in its head, the model's are below "
            f"{vocab_size}"
        )
    ttl = document.ttl_seconds
    if ttl is not None and not 0 <= ttl < MAX_TTL_SECONDS:
        raise InvalidRequest(
            f"{name} has a time to live of {exact(ttl)} s: it is less than "
            f"{exact(MAX_TTL_SECONDS)} s, and not below 0"
        )


def _with_head(document: ArchivedDocument, spans: tuple[tuple[int, ...], ...]) -> int:
    """Tokens that must be in the pool together; 0 of a document that is compiled alone."""
    return len(document.head) + sum(map(len, spans)) if document.head else 0


def _changes(document: ArchivedDocument) -> Changes:
    changes: Changes = {"ttl_seconds": document.ttl_seconds}
    if document.name is not None:
        changes["name"] = document.name
    return changes


def _store(cache: Cache, key: str, expected: _ExpectedChunk, content: bytearray) -> bool:
    try:
        header = check_chunk(content, key)
    except ChunkUnreadable:
        return False
    layout = header.layout
    shape = kv_shape(cache.model, expected.num_tokens)
    if (layout.shape, layout.kv_dtype) != (shape, expected.kv_dtype):
        return False
    if header.token_digest != expected.token_digest or not is_finite(content):
        return False
    encoded = stored_bytes(content)
    # All of them, not until the first that keeps it.
    kept = [tier.write_encoded(key, expected.namespace, encoded) for tier in cache.tiers]
    return any(kept)


def _finish(cache: Cache, document: ArchivedDocument, stored: set[str]) -> None:
    """Mark a document ready whose chunks are all stored, unless somebody compiles it now."""
    keys = [chunk.key for chunk in document.chunks if chunk.key in stored]
    registered = cache.registry.get(document.namespace, document.id)
    if len(keys) < len(document.chunks) or registered.state == State.READY:
        return
    chunks = cache.registry.chunks(document.namespace, document.id)
    if chunks[0].head != document.head:
        return  # it was registered here before, behind another head
    claim = cache.registry.take_claim(document.namespace, document.id, _CLAIM_SECONDS)
    if claim is None:
        return
    for position, key in enumerate(keys):
        cache.registry.record_chunk(claim, position, key)
    cache.registry.finish_claim(claim)

"""Heads' and documents' chunks as the segments of a command: each with its key and what it is
behind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from legokv.documents.document import StoredChunk, TokenSpan
from legokv.engine.naming import ChunkNaming
from legokv.serving.messages import PromptSegment


def by_document(chunks: Sequence[StoredChunk]) -> Iterator[Sequence[StoredChunk]]:
    """The chunks of several documents, one behind another's, document by document."""
    starts = [number for number, chunk in enumerate(chunks) if not chunk.position]
    for start, end in pairwise([*starts, len(chunks)]):
        yield chunks[start:end]


def head_segments(
    naming: ChunkNaming, head: TokenSpan, namespace: str, *, persistent: bool = True
) -> list[PromptSegment]:
    """The head's one chunk; none for a head without tokens."""
    if not head:
        return []
    (named,) = naming.document_keys([(head, None)], namespace)
    return [PromptSegment(head, named.key, persistent)]


def document_segments(
    naming: ChunkNaming,
    chunks: Sequence[StoredChunk],
    namespace: str,
    head: Sequence[PromptSegment] = (),
    *,
    persistent: bool = True,
) -> list[PromptSegment]:
    """One document's chunks behind the one of a head; with none they are compiled alone.

    Chunks that the registry has keys of, from before there were heads, stay alone.
    """
    stored = [(chunk.token_ids, chunk.key) for chunk in chunks]
    keys = naming.document_keys(stored, namespace, head[0].key if head else None)
    return [
        PromptSegment(chunk.token_ids, named.key, persistent, named.behind)
        for chunk, named in zip(chunks, keys, strict=True)
    ]


def segments_as_registered(
    naming: ChunkNaming, chunks: Sequence[StoredChunk], namespace: str
) -> tuple[PromptSegment, ...]:
    """One document's chunks, and before them the head that it is registered to be compiled behind.

    The head is listed for that alone. The chunks are a document's first ones, at least one.
    """
    head = [
        replace(piece, in_prompt=False)
        for piece in head_segments(naming, chunks[0].head, namespace)
    ]
    return (*head, *document_segments(naming, chunks, namespace, head))

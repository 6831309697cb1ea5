"""Documents' chunks as the segments of a command: each with its key and what it is behind."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from legokv.documents.document import StoredChunk
from legokv.engine.naming import ChunkNaming
from legokv.serving.messages import PromptSegment


def by_document(chunks: Sequence[StoredChunk]) -> Iterator[Sequence[StoredChunk]]:
    """The chunks of several documents, one behind another's, document by document."""
    starts = [number for number, chunk in enumerate(chunks) if not chunk.position]
    for start, end in pairwise([*starts, len(chunks)]):
        yield chunks[start:end]


def document_segments(
    naming: ChunkNaming,
    chunks: Sequence[tuple[Sequence[int], str | None]],
    namespace: str,
    *,
    persistent: bool = True,
) -> list[PromptSegment]:
    """One document's chunks, given by their ids and the keys recorded for them, if any are."""
    keys = naming.document_keys(chunks, namespace)
    return [
        PromptSegment(ids, named.key, persistent, named.behind)
        for (ids, _), named in zip(chunks, keys, strict=True)
    ]

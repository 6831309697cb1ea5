"""A registry's chunks as an engine's, for tests that have no server between them."""

from collections.abc import Sequence

from legokv import Engine
from legokv.chunks.chunk import Chunk
from legokv.documents.document import DEFAULT_NAMESPACE, StoredChunk


def chunks_of(
    engine: Engine, stored: Sequence[StoredChunk], namespace: str = DEFAULT_NAMESPACE
) -> list[Chunk]:
    """The chunks of documents, one document's behind another's, each behind the one before."""
    chunks: list[Chunk] = []
    for part in stored:
        behind = chunks[-1] if part.position else ()
        chunks.append(engine.chunk(part.token_ids, namespace, behind=behind))
    return chunks


def compile_last(engine: Engine, stored: Sequence[StoredChunk], namespace: str) -> str:
    """The key of the last of these chunks, which is compiled then."""
    chunk = chunks_of(engine, stored, namespace)[-1]
    return engine.compile(chunk.token_ids, namespace, behind=chunk.behind or ()).key

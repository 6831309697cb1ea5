"""Which chunk a span of token ids is for one engine, and which a key names. No KV here."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from legokv.built.folder import EngineFacts
from legokv.built.settings import EngineSettings
from legokv.chunks.chunk import Chunk, chunk_keys, kv_dtype_name
from legokv.documents.document import check_namespace
from legokv.engine.request import DUMMY_TOKENS, GenerateRequest, check_chunks
from legokv.link.link import Segment
from legokv.model.dtypes import Int32


@dataclass(frozen=True)
class ChunkNaming:
    """Keys are for the model of `facts` and for KV stored as `stored_dtype`."""

    facts: EngineFacts
    stored_dtype: str

    @classmethod
    def by_settings(cls, facts: EngineFacts, settings: EngineSettings) -> "ChunkNaming":
        """The naming of an engine that is opened with these settings."""
        dtype = settings.dtype_or(facts.dtype)
        return cls(replace(facts, dtype=dtype), settings.kv_stored_dtype)

    def chunk(
        self, token_ids: Sequence[int] | Int32, namespace: str, *, persistent: bool = True
    ) -> Chunk:
        """The chunk of these ids; InvalidRequest for none, too many, one that is no token, or a
        namespace that is none.
        """
        check_namespace(namespace)
        check_chunks([token_ids], self.facts.model)
        ids = tuple(np.asarray(token_ids, np.int32).tolist())
        (key,) = self._keys([ids], namespace)
        return Chunk(key, namespace, ids, persistent=persistent)

    def keys(self, spans: Sequence[Sequence[int]], namespace: str) -> list[str]:
        """The keys of these spans' chunks; InvalidRequest as `chunk` has it."""
        check_namespace(namespace)
        check_chunks(spans, self.facts.model)
        return self._keys(spans, namespace)

    def segments(self, request: GenerateRequest) -> list[Segment]:
        """The request's, for LegoLink-0 with chunks compiled behind dummies but at the start."""
        if request.mode != "legolink-0":
            return list(request.segments)
        return [
            self._behind_dummies(segment) if number and isinstance(segment, Chunk) else segment
            for number, segment in enumerate(request.segments)
        ]

    def _behind_dummies(self, chunk: Chunk) -> Chunk:
        (key,) = self._keys([chunk.token_ids], chunk.namespace, DUMMY_TOKENS)
        return replace(chunk, key=key, dummy_tokens=DUMMY_TOKENS, persistent=False)

    def _keys(
        self, spans: Sequence[Sequence[int]], namespace: str, dummy_tokens: int = 0
    ) -> list[str]:
        dtype = kv_dtype_name(self.facts.dtypes.kv, self.stored_dtype)
        return chunk_keys(self.facts.fingerprint, dtype, namespace, spans, dummy_tokens)


class NamedChunks:
    """Chunks by key, so that a key stands for its token ids: at most so many tokens of them.

    Safe to use from several threads.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        # In the order of their last naming: the first leaves first.
        self._chunks: dict[str, Chunk] = {}
        self._changing = threading.Lock()

    def put(self, chunk: Chunk) -> None:
        """Keep a chunk, others leaving for it; the newest stays, however large."""
        with self._changing:
            self._remove(chunk.key)
            self._chunks[chunk.key] = chunk
            self._num_tokens += len(chunk.token_ids)
            while self._num_tokens > self._max_tokens and len(self._chunks) > 1:
                self._remove(next(iter(self._chunks)))

    def find(self, keys: Iterable[str], namespace: str) -> dict[str, Chunk]:
        """The chunks of these keys that are known, and of that namespace."""
        with self._changing:
            chunks = {
                key: self._chunks[key]
                for key in keys
                if key in self._chunks and self._chunks[key].namespace == namespace
            }
            for key, chunk in chunks.items():
                del self._chunks[key]
                self._chunks[key] = chunk
            return chunks

    def forget(self, key: str) -> None:
        """Keep the chunk no more, if it is there."""
        with self._changing:
            self._remove(key)

    def _remove(self, key: str) -> None:
        chunk = self._chunks.pop(key, None)
        if chunk is not None:
            self._num_tokens -= len(chunk.token_ids)

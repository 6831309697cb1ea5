"""Which chunk a span of token ids is for one engine, and which a key names. No KV here."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from legokv.built.folder import EngineFacts
from legokv.built.settings import EngineSettings
from legokv.chunks.chunk import Chunk, TokenIds, chunk_key, kv_dtype_name
from legokv.documents.document import check_namespace
from legokv.engine.request import (
    DUMMY_TOKENS,
    GenerateRequest,
    check_behind,
    check_chunks,
)
from legokv.link.link import Segment
from legokv.model.dtypes import Int32


@dataclass(frozen=True)
class ChunkKey:
    """A chunk's key, and that of the chunk it is compiled behind; None: it is compiled alone."""

    key: str
    behind: str | None


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
        self,
        token_ids: Sequence[int] | Int32,
        namespace: str,
        *,
        behind: Chunk | None = None,
        persistent: bool = True,
    ) -> Chunk:
        """The chunk of these ids, compiled `behind` another or alone.

        InvalidRequest for no ids, too many, one that is no token, or a namespace that is none.
        """
        check_namespace(namespace)
        check_chunks([token_ids], self.facts.model)
        ids = tuple(np.asarray(token_ids, np.int32).tolist())
        if behind is not None:
            check_behind(behind, len(ids), namespace, self.facts.model)
        key = self._key(ids, namespace, None if behind is None else behind.key)
        return Chunk(key, namespace, ids, persistent=persistent, behind=behind)

    def document_keys(
        self, chunks: Iterable[tuple[TokenIds, str | None]], namespace: str, head: str | None = None
    ) -> list[ChunkKey]:
        """The keys of one document's chunks, given as ids and the key that was recorded for them.

        Each is behind the one before, and the first behind the chunk of the key `head`, unless it
        is recorded as compiled alone: chunks were always, once. InvalidRequest as `chunk` has it.
        """
        check_namespace(namespace)
        keys: list[ChunkKey] = []
        behind = head
        for token_ids, recorded in chunks:
            check_chunks([token_ids], self.facts.model)
            key = self._key(token_ids, namespace, behind)
            if recorded is not None and recorded != key:
                alone = self._key(token_ids, namespace)
                key, behind = (alone, None) if recorded == alone else (key, behind)
            keys.append(ChunkKey(key, behind))
            behind = key
        return keys

    def segments(self, request: GenerateRequest) -> list[Segment]:
        """The request's, for LegoLink-0 with documents compiled behind dummies but at the start.

        A head that is given as ids is the chunk that a document was compiled behind.
        """
        segments = _with_known_head(request.segments)
        if request.mode != "legolink-0":
            return segments
        named: list[Segment] = []
        last: Segment | None = None
        for segment in segments:
            chunk = segment
            if named and isinstance(segment, Chunk):
                # A document's chunks go on behind its first, as what that is here.
                goes_on = _goes_on(segment, last)
                chunk = self._recompiled(segment, named[-1] if goes_on else self._dummies(segment))
            named.append(chunk)
            last = segment
        return named

    def _recompiled(self, chunk: Chunk, behind: Segment) -> Chunk:
        """The chunk as it is behind another."""
        assert isinstance(behind, Chunk), "what goes on goes on behind a chunk"
        if chunk.behind is not None and behind.key == chunk.behind.key:
            return chunk
        key = self._key(chunk.token_ids, chunk.namespace, behind.key)
        return replace(chunk, key=key, persistent=False, behind=behind)

    def _dummies(self, chunk: Chunk) -> Chunk:
        """What LegoLink-0 compiles it behind: beginnings of text where the model has one."""
        model = self.facts.model
        dummy = next(t for t in (model.bos_token_id, *model.eos_token_ids, 0) if t is not None)
        return self.chunk([dummy] * DUMMY_TOKENS, chunk.namespace, persistent=False)

    def _key(self, token_ids: TokenIds, namespace: str, behind: str | None = None) -> str:
        dtype = kv_dtype_name(self.facts.dtypes.kv, self.stored_dtype)
        return chunk_key(self.facts.fingerprint, dtype, namespace, token_ids, behind)


def _with_known_head(segments: Sequence[Segment]) -> list[Segment]:
    """The segments, token ids at the start being the chunk of theirs that others stand behind."""
    first, *others = segments or ((),)
    if isinstance(first, Chunk) or not len(first):
        return list(segments)
    ids = tuple(np.asarray(first, np.int32).tolist())
    heads = (chunk.before[0] for chunk in others if isinstance(chunk, Chunk) and chunk.before)
    head = next((head for head in heads if head.token_ids == ids), first)
    return [head, *others]


def _goes_on(chunk: Chunk, last: Segment | None) -> bool:
    """Whether a chunk was compiled right behind the segment that stands before it."""
    behind = chunk.behind
    return isinstance(last, Chunk) and behind is not None and behind.key == last.key


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

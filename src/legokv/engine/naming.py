"""Which chunk a span of token ids is for one engine: checked, and named by its key. No KV here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from legokv.built.folder import EngineFacts
from legokv.chunks.chunk import Chunk, chunk_key, kv_dtype_name
from legokv.engine.request import DUMMY_TOKENS, GenerateRequest, check_context, check_token_ids
from legokv.errors import InvalidRequest
from legokv.link.link import Segment
from legokv.model.dtypes import Int32


@dataclass(frozen=True)
class ChunkNaming:
    """Keys are for the model of `facts` and for KV stored as `stored_dtype`."""

    facts: EngineFacts
    stored_dtype: str

    def chunk(self, token_ids: Sequence[int] | Int32, namespace: str, *, persistent: bool) -> Chunk:
        """The chunk of these ids; InvalidRequest for none, too many, or one that is no token."""
        check_token_ids(token_ids, self.facts.model)
        ids = tuple(np.asarray(token_ids, np.int32).tolist())
        if not ids:
            raise InvalidRequest("a chunk has 0 tokens; it needs at least one")
        check_context(len(ids), 0, self.facts.model)
        return Chunk(self._key(ids, namespace, 0), namespace, ids, persistent=persistent)

    def segments(self, request: GenerateRequest) -> list[Segment]:
        """The request's, for LegoLink-0 with chunks compiled behind dummies but at the start."""
        if request.mode != "legolink-0":
            return list(request.segments)
        return [
            self._behind_dummies(segment) if number and isinstance(segment, Chunk) else segment
            for number, segment in enumerate(request.segments)
        ]

    def _behind_dummies(self, chunk: Chunk) -> Chunk:
        key = self._key(chunk.token_ids, chunk.namespace, DUMMY_TOKENS)
        return replace(chunk, key=key, dummy_tokens=DUMMY_TOKENS, persistent=False)

    def _key(self, token_ids: tuple[int, ...], namespace: str, dummy_tokens: int) -> str:
        dtype = kv_dtype_name(self.facts.dtype, self.stored_dtype)
        return chunk_key(self.facts.fingerprint, dtype, namespace, token_ids, dummy_tokens)

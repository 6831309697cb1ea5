"""A chunk as the rest of the system names it: whose it is, its tokens, its key. No KV here."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from legokv.errors import InvalidRequest

CHUNK_FORMAT_VERSION = 1

MAX_TOKEN_ID = 2**31 - 1

TokenIds = Sequence[int] | npt.NDArray[Any]


def token_blob(token_ids: TokenIds) -> bytes:
    """The ids as little-endian int32, four bytes each; InvalidRequest for anything else."""
    ids = np.asarray(token_ids)
    if ids.size == 0:
        return b""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidRequest(
            f"token ids are a flat sequence of integers, not {ids.ndim} dimensions of {ids.dtype}"
        )
    if ids.min() < 0 or ids.max() > MAX_TOKEN_ID:
        raise InvalidRequest(
            f"token ids lie between 0 and {MAX_TOKEN_ID}, not {ids.min()} to {ids.max()}"
        )
    return ids.astype("<i4").tobytes()


def tokens_from_blob(blob: bytes) -> tuple[int, ...]:
    """The ids `token_blob` wrote."""
    return tuple(np.frombuffer(blob, dtype="<i4").tolist())


def token_digest(token_ids: TokenIds) -> str:
    """Hexadecimal SHA-256 of the token ids alone."""
    return hashlib.sha256(token_blob(token_ids)).hexdigest()


def kv_dtype_name(model_dtype: str, stored_dtype: str) -> str:
    """What a chunk's key calls its KV's type: int8 that stands for another type says for which."""
    return model_dtype if stored_dtype == "model" else f"{stored_dtype} {model_dtype}"


def chunk_key(
    fingerprint: str,
    kv_dtype: str,
    namespace: str,
    token_ids: TokenIds,
    behind: str | None = None,
) -> str:
    """Hexadecimal SHA-256 of all that decides a chunk's KV and of who may use it.

    The same in every process and on every machine. `kv_dtype` is a `kv_dtype_name`. `behind`
    is the key of the chunk it was compiled behind; chunks compiled behind other things never meet.
    """
    digest, version = hashlib.sha256(), str(CHUNK_FORMAT_VERSION)
    # "0" is what stood there of a chunk compiled alone when there were other ways to say it.
    for text in ("legokv chunk", version, fingerprint, kv_dtype, namespace, "0"):
        _add_part(digest, text.encode())
    # A chunk compiled alone has no such part: its key is what it was before there were others.
    if behind is not None:
        _add_part(digest, behind.encode())
    _add_part(digest, token_blob(token_ids))
    return digest.hexdigest()


def _add_part(digest: "hashlib._Hash", part: bytes) -> None:
    # Each part behind its length: no two lists of parts have the same encoding.
    digest.update(struct.pack("<Q", len(part)))
    digest.update(part)


@dataclass(frozen=True)
class Chunk:
    """A span of tokens compiled once, alone or behind others, and reused by `key` at any position.

    `Engine.chunk` and `Engine.compile` make them; InvalidRequest there for ids that are no tokens.

    key: hexadecimal SHA-256 of all that decides the KV: model, type, namespace, tokens, and what
        it was compiled behind.
    namespace: whose it is; the same tokens of two namespaces are two chunks.
    token_ids: at least one.
    persistent: also kept on disk and in Redis.
    behind: the chunk that stood right before it when it was compiled, behind whatever that was
        compiled behind; None: it was compiled alone.

    >>> import legokv
    >>> engine = legokv.Engine.open("out/engines/llama")
    >>> chunk = engine.chunk([5, 6, 7], "readers")
    >>> chunk.num_tokens, len(chunk.key)
    (3, 64)
    >>> chunk.key == engine.chunk([5, 6, 7], "others").key
    False
    """

    key: str
    namespace: str
    token_ids: tuple[int, ...]
    persistent: bool = True
    # The key says it already, and a long document's chunks would compare one another over and over.
    behind: "Chunk | None" = field(default=None, compare=False, repr=False)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @cached_property
    def start(self) -> int:
        """How many tokens it was compiled behind: the position of its first one then."""
        return sum(chunk.num_tokens for chunk in self.before)

    @cached_property
    def before(self) -> "tuple[Chunk, ...]":
        """All chunks that it was compiled behind, in order."""
        parts: list[Chunk] = []
        chunk = self.behind
        while chunk is not None:
            parts.append(chunk)
            chunk = chunk.behind
        return tuple(reversed(parts))


def with_all_before(chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
    """The chunks and all that they were compiled behind, each once, what stood before first."""
    parts: dict[str, Chunk] = {}
    for chunk in chunks:
        for part in (*chunk.before, chunk):
            parts.setdefault(part.key, part)
    return tuple(parts.values())

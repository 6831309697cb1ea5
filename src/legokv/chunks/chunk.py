"""A chunk as the rest of the system names it: whose it is, its tokens, its key. No KV here."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    dummy_tokens: int = 0,
) -> str:
    """Hexadecimal SHA-256 of all that decides a chunk's KV and of who may use it.

    The same in every process and on every machine. `kv_dtype` is a `kv_dtype_name`. `dummy_tokens`
    is the number of dummy tokens the chunk was compiled behind (LegoLink-0); chunks compiled with
    and without never meet.
    """
    return chunk_keys(fingerprint, kv_dtype, namespace, [token_ids], dummy_tokens)[0]


def chunk_keys(
    fingerprint: str,
    kv_dtype: str,
    namespace: str,
    spans: Iterable[TokenIds],
    dummy_tokens: int = 0,
) -> list[str]:
    """The `chunk_key` of each span of token ids."""
    version, dummies = str(CHUNK_FORMAT_VERSION), str(dummy_tokens)
    shared = hashlib.sha256()
    for text in ("legokv chunk", version, fingerprint, kv_dtype, namespace, dummies):
        _add_part(shared, text.encode())
    keys = []
    for token_ids in spans:
        digest = shared.copy()
        _add_part(digest, token_blob(token_ids))
        keys.append(digest.hexdigest())
    return keys


def _add_part(digest: "hashlib._Hash", part: bytes) -> None:
    # Each part behind its length: no two lists of parts have the same encoding.
    digest.update(struct.pack("<Q", len(part)))
    digest.update(part)


@dataclass(frozen=True)
class Chunk:
    """A span of tokens compiled alone from position 0, and reused by `key` at any position.

    `Engine.chunk` and `Engine.compile` make them; InvalidRequest there for ids that are no tokens.

    key: hexadecimal SHA-256 of all that decides the KV: model, type, namespace, tokens, dummies.
    namespace: whose it is; the same tokens of two namespaces are two chunks.
    token_ids: at least one.
    dummy_tokens: so many dummies stood before it when it was compiled (LegoLink-0; their KV is
        dropped, so token i was at position dummy_tokens + i).
    persistent: also kept on disk and in Redis.

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
    dummy_tokens: int = 0
    persistent: bool = True

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

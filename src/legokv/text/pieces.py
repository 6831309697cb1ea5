"""Tokens one by one to text that no later token changes. Joined, it is the decode of all of them.

Control tokens are not pushed here: a decode leaves them out.
"""

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

Decode = Callable[[Sequence[int]], str]

REPLACEMENT = "\ufffd"
# A character of UTF-8 has at most so many bytes, and each of its tokens at least one.
_MAX_CHARACTER_TOKENS = 4


class Pieces(Protocol):
    """The text of a growing list of tokens."""

    def push(self, token_id: int) -> str:
        """The text that is certain with one more token; may be empty."""

    def pending(self) -> str:
        """What `finish` would give, were there no more tokens."""

    def finish(self) -> str:
        """The rest of the text; of what is no UTF-8, U+FFFD as the decode has it."""


class BytePieces:
    """Of a byte-level vocabulary: the text is its tokens' bytes, read as UTF-8."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes(token_id))

    def pending(self) -> str:
        state = self._decoder.getstate()
        text = self._decoder.decode(b"", final=True)
        self._decoder.setstate(state)
        return text

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class DecodedPieces:
    """Of any other vocabulary: `decode` of a few tokens more, less the decode of the few.

    A run of `byte_ids` is decoded as a whole when it has ended: with one byte that is no UTF-8,
    every byte of the run is a U+FFFD.
    """

    def __init__(self, decode: Decode, byte_ids: Collection[int] = frozenset()) -> None:
        self._decode = decode
        self._byte_ids = byte_ids
        # The last tokens, of which so many are already text. Tokenizers treat a first token
        # otherwise than a later one, and a run must not be cut.
        self._ids: list[int] = []
        self._num_read = 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        if token_id in self._byte_ids:
            return ""
        new = self.pending()
        if new.endswith(REPLACEMENT) and self._num_unread < _MAX_CHARACTER_TOKENS:
            return ""
        return self._take(new)

    def pending(self) -> str:
        if not self._num_unread:
            return ""
        before = self._decode(self._ids[: self._num_read])
        return self._decode(self._ids)[len(before) :]

    def finish(self) -> str:
        return self._take(self.pending())

    @property
    def _num_unread(self) -> int:
        return len(self._ids) - self._num_read

    def _take(self, new: str) -> str:
        del self._ids[: self._num_read]
        self._num_read = len(self._ids)
        return new

"""What each token of one answer writes: its share of the text, and its bytes."""

from dataclasses import dataclass
from typing import Protocol

from legokv.text.stream import TokenTexts


class TokenNames(TokenTexts, Protocol):
    """What spelling needs of a tokenizer."""

    def token_name(self, token_id: int) -> str:
        """A token as the vocabulary has it."""

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """What a token writes in a text, or as the `first` of one."""


@dataclass(frozen=True)
class Spelled:
    """A token's `name` in the vocabulary; the other two are empty for one that no text shows."""

    name: str
    text: str
    bytes: bytes


class Spelling:
    """The texts of an answer's tokens join to its text; their bytes, to that in UTF-8.

    The token that ends a character has the whole of it as its text, those before it none. Bytes
    are the token's own: of what is no UTF-8 they join to it, and the texts to U+FFFD.
    """

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._pieces = names.pieces()
        self._first = True

    def likely(self, token_id: int) -> Spelled:
        """A token that might have come next, its text by itself."""
        name = self._names.token_name(token_id)
        if self._names.control_text(token_id) is not None:
            return Spelled(name, "", b"")
        own = self._names.token_bytes(token_id, first=self._first)
        return Spelled(name, own.decode("utf-8", "replace"), own)

    def push(self, token_id: int, *, last: bool) -> Spelled:
        """The next token; the `last` of an answer has what was still open as well."""
        spelled = self.likely(token_id)
        text = ""
        if self._names.control_text(token_id) is None:
            text = self._pieces.push(token_id)
            self._first = False
        return Spelled(spelled.name, text + (self._pieces.finish() if last else ""), spelled.bytes)

    def end(self, token_id: int) -> Spelled:
        """A token that ended the answer and is no part of its text."""
        return Spelled(self._names.token_name(token_id), self._pieces.finish(), b"")

"""Token ids to streamed text: whole characters only, and an end where a stop word begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from legokv.text.pieces import Decode, DecodedPieces, Pieces
from legokv.text.stop_words import StopScan, StopWords


class TokenTexts(Protocol):
    """What a stream needs of a tokenizer."""

    def pieces(self) -> Pieces:
        """A new list of tokens' text."""

    def control_text(self, token_id: int) -> str | None:
        """The name of a token that no text shows, "" for an id without a token; else None."""


@dataclass(frozen=True)
class _ByDecode:
    """Texts by a decode alone, which shows all tokens."""

    decode: Decode

    def pieces(self) -> Pieces:
        return DecodedPieces(self.decode)

    def control_text(self, token_id: int) -> str | None:
        return None


class TextStream:
    """Text of a growing list of tokens, given out in pieces whose join is the whole text.

    A piece never ends inside a UTF-8 character, and text that may still turn out to begin a stop
    word is held back. `stopped` is true once one was met; it and what follows are left out. A stop
    word may be, or have in it, the names of control tokens, which the text does not show.
    """

    def __init__(
        self, texts: TokenTexts | Decode, stop_words: StopWords | Sequence[str] = ()
    ) -> None:
        """`texts` is a tokenizer, or a decode; `stop_words` may serve several streams."""
        words = stop_words if isinstance(stop_words, StopWords) else StopWords(stop_words)
        self._texts = _ByDecode(texts) if callable(texts) else texts
        self._pieces = self._texts.pieces()
        self._scan = StopScan(words) if words else None
        self._may_stop = True

    @property
    def stopped(self) -> bool:
        """Whether a stop word was met."""
        return self._scan is not None and self._scan.stopped

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that is certain after one more token; may be empty.

        A stop word that begins in a token pushed with `may_stop` false is text like any other.
        """
        self._may_stop = may_stop
        name = self._texts.control_text(token_id)
        if name is not None:
            return self._pass_control(name)
        return self._scanned(self._pieces.push(token_id))

    def finish(self) -> str:
        """The text still held back, with an unfinished character as U+FFFD."""
        if self.stopped:
            return ""
        rest = self._scanned(self._pieces.finish())
        return rest if self._scan is None or self.stopped else rest + self._scan.pass_by("")

    def _scanned(self, new: str) -> str:
        if self._scan is None:
            return new
        return self._scan.feed(new) if self._may_stop else self._scan.pass_by(new)

    def _pass_control(self, name: str) -> str:
        """Text before a control token, if a stop word ends with the token's name.

        What the pieces hold is not certain by it: a decode joins the bytes on both its sides.
        """
        if self._scan is None:
            return ""
        held = self._pieces.pending()
        if not (held and self._may_stop):
            return self._scan.feed(name, hidden=True) if self._may_stop else self._scan.pass_by("")
        ended = self._scan.copy()
        text = ended.feed(held)
        if ended.stopped:
            return ""
        text += ended.feed(name, hidden=True)
        if not ended.stopped:
            return ""
        self._scan = ended
        return text

"""Token ids to streamed text: whole characters only, and an end where a stop word begins."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class TextStream:
    """Text of a growing list of tokens, given out in pieces whose join is the whole text.

    A piece never ends inside a UTF-8 character, and text that may still turn out to begin a stop
    word is held back. `stopped` is true once one was met; it and what follows are left out.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop_words: Sequence[str] = ()
    ) -> None:
        self._decode = decode
        self._stop_words = tuple(word for word in stop_words if word)
        self._ids: list[int] = []
        self._context_start = 0
        self._decoded_ids = 0
        self._held = ""
        self.stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that is certain after one more token; may be empty.

        A stop word that begins in a token pushed with `may_stop` false is text like any other.
        """
        self._ids.append(token_id)
        new = self._new_text(whole=True)
        if not (new and self._stop_words):
            return new
        self._held += new
        return self._release() if may_stop else self._release_all()

    def finish(self) -> str:
        """The text still held back, with an unfinished character as U+FFFD."""
        if self.stopped:
            return ""
        rest, self._held = self._held, ""
        if self._decoded_ids < len(self._ids):
            rest += self._new_text(whole=False)
        return rest

    def _new_text(self, *, whole: bool) -> str:
        """The text of the tokens since the last; if it shall be `whole`, none of a part character.

        Tokenizers treat a first token otherwise than a later one, so a few are decoded again.
        """
        before = self._decode(self._ids[self._context_start : self._decoded_ids])
        new = self._decode(self._ids[self._context_start :])[len(before) :]
        if whole and new.endswith(REPLACEMENT):
            return ""
        self._context_start = max(0, self._decoded_ids - 4)
        self._decoded_ids = len(self._ids)
        return new

    def _release_all(self) -> str:
        text, self._held = self._held, ""
        return text

    def _release(self) -> str:
        places = [at for at in map(self._held.find, self._stop_words) if at >= 0]
        if places:
            self.stopped = True
            text, self._held = self._held[: min(places)], ""
            return text
        keep = max((self._overlap(word) for word in self._stop_words), default=0)
        text, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return text

    def _overlap(self, word: str) -> int:
        """Length of the longest end of the held text that begins `word`."""
        longest = min(len(word) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(word[:n])), 0)

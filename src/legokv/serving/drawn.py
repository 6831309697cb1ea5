"""Answers to conversations as they were drawn: the next turn's prompt has these very tokens."""

import hashlib
import threading
from collections import OrderedDict

from legokv.serving.answers import Drawn


class DrawnAnswers:
    """Tokens by whose answer it is, the prompt before it and its text; at most so many of them.

    A text may be written with other tokens than those that its tokenizer chooses. A namespace's
    answers are found by none but its own requests. Safe to use from many threads.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        # In the order of their last use: the first leaves first.
        self._ids: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._changing = threading.Lock()

    def put(self, namespace: str, digest: str, answer: Drawn) -> None:
        """Remember an answer behind the prompt of this digest; "" is none.

        One without tokens is nothing to remember: so many of them would have no bound.
        """
        if not digest or not answer.token_ids:
            return
        key = _key(namespace, digest, answer.text)
        with self._changing:
            self._num_tokens -= len(self._ids.pop(key, ()))
            self._ids[key] = answer.token_ids
            self._num_tokens += len(answer.token_ids)
            while self._num_tokens > self._max_tokens:
                self._num_tokens -= len(self._ids.popitem(last=False)[1])

    def find(self, namespace: str, digest: str, text: str) -> tuple[int, ...] | None:
        """The tokens of this text as it was drawn there; None if it was not, or long ago."""
        key = _key(namespace, digest, text)
        with self._changing:
            if key in self._ids:
                self._ids.move_to_end(key)
            return self._ids.get(key)


def _key(namespace: str, digest: str, text: str) -> bytes:
    # Blanks at both ends of a message are left out.
    whole = "\0".join((namespace, digest, text.strip()))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()

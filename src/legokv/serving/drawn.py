"""Tokens that are remembered: an answer's as they were drawn, for the next turn's prompt has these
very ones, and a prompt's that was counted and is to be asked.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from legokv.serving.answers import Drawn
from legokv.serving.question import Question
from legokv.text.conversation import ConversationPrompt

ENTRY_TOKENS = 64
"""What an entry counts for beside its tokens: its key and places take some 450 bytes."""
COUNTED_SECONDS = 60.0
"""So long a counted prompt is as good as a new one: an answer drawn since may be part of that."""


class DrawnAnswers:
    """Tokens by whose answer it is, the prompt before it and its text; at most so many of them,
    ENTRY_TOKENS more for each answer.

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
            before = self._ids.pop(key, None)
            self._num_tokens -= 0 if before is None else ENTRY_TOKENS + len(before)
            self._ids[key] = answer.token_ids
            self._num_tokens += ENTRY_TOKENS + len(answer.token_ids)
            while self._num_tokens > self._max_tokens:
                self._num_tokens -= ENTRY_TOKENS + len(self._ids.popitem(last=False)[1])

    def find(self, namespace: str, digest: str, text: str) -> tuple[int, ...] | None:
        """The tokens of this text as it was drawn there; None if it was not, or long ago."""
        key = _key(namespace, digest, text)
        with self._changing:
            if key in self._ids:
                self._ids.move_to_end(key)
            return self._ids.get(key)


@dataclass(frozen=True)
class _Counted:
    prompt: ConversationPrompt
    num_tokens: int
    until: float


class CountedPrompts:
    """Prompts that were laid out to be counted, until they are asked, for COUNTED_SECONDS and on
    that day; at most so many tokens of them, ENTRY_TOKENS more for each. Safe to use from many
    threads.
    """

    def __init__(
        self,
        max_tokens: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], date] = date.today,
    ) -> None:
        self._max_tokens = max_tokens
        self._clock = clock
        self._today = today
        self._num_tokens = 0
        # The first is the oldest, and leaves first.
        self._prompts: OrderedDict[bytes, _Counted] = OrderedDict()
        self._changing = threading.Lock()

    @property
    def num_tokens(self) -> int:
        """What those count for that are remembered now."""
        return self._num_tokens

    def key_of(self, question: Question) -> bytes:
        """Of all that a prompt is made of; of the day too, which templates may write."""
        asked = (question.text, question.system_text, question.apply_chat_template)
        chat = (question.conversation, question.switches)
        documents = tuple(question.document_ids)
        whole = repr((question.namespace, documents, asked, chat, self._today()))
        return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()

    def put(self, key: bytes, prompt: ConversationPrompt) -> None:
        """Remember the prompt under a key that was made before it was laid out."""
        fresh = sum(len(part) for part in prompt.rest if not isinstance(part, int))
        num_tokens = ENTRY_TOKENS + len(prompt.head_ids) + fresh
        with self._changing:
            self._pop(key)
            now = self._clock()
            self._prompts[key] = _Counted(prompt, num_tokens, now + COUNTED_SECONDS)
            self._num_tokens += num_tokens
            while self._prompts and (
                self._num_tokens > self._max_tokens or now >= self._oldest().until
            ):
                self._pop(next(iter(self._prompts)))

    def take(self, question: Question) -> ConversationPrompt | None:
        """The prompt, which is forgotten; None if it was not counted, or too long ago."""
        if not self._prompts:
            return None
        key = self.key_of(question)
        with self._changing:
            counted = self._pop(key)
            is_good = counted is not None and self._clock() < counted.until
        return counted.prompt if counted is not None and is_good else None

    def _oldest(self) -> _Counted:
        return next(iter(self._prompts.values()))

    def _pop(self, key: bytes) -> _Counted | None:
        counted = self._prompts.pop(key, None)
        self._num_tokens -= 0 if counted is None else counted.num_tokens
        return counted


def _key(namespace: str, digest: str, text: str) -> bytes:
    # Blanks at both ends of a message are left out.
    whole = "\0".join((namespace, digest, text.strip()))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()

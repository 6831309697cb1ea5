"""Tokens that are remembered: an answer's as they were drawn, for the next turn's prompt has these
very ones, and a prompt's that was counted and is to be asked.
"""

import hashlib
import threading
from collections import OrderedDict

from legokv.serving.answers import Drawn
from legokv.serving.question import Question
from legokv.text.conversation import ConversationPrompt


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


class CountedPrompts:
    """Prompts that were laid out to be counted, until they are asked; at most so many tokens of
    them. Safe to use from many threads.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._prompts: OrderedDict[bytes, tuple[ConversationPrompt, int]] = OrderedDict()
        self._changing = threading.Lock()

    def put(self, question: Question, prompt: ConversationPrompt) -> None:
        """Remember the prompt of this question."""
        fresh = sum(len(part) for part in prompt.rest if not isinstance(part, int))
        num_tokens = 1 + len(prompt.head_ids) + fresh
        self.take(question)
        with self._changing:
            self._prompts[_prompt_key(question)] = prompt, num_tokens
            self._num_tokens += num_tokens
            while self._num_tokens > self._max_tokens:
                self._num_tokens -= self._prompts.popitem(last=False)[1][1]

    def take(self, question: Question) -> ConversationPrompt | None:
        """The prompt, which is forgotten; None if it was not counted, or long ago."""
        with self._changing:
            prompt, num_tokens = self._prompts.pop(_prompt_key(question), (None, 0))
            self._num_tokens -= num_tokens
        return prompt


def _prompt_key(question: Question) -> bytes:
    """Of all that a prompt is made of."""
    asked = (question.text, question.system_text, question.apply_chat_template)
    chat = (question.conversation, question.switches)
    whole = repr((question.namespace, tuple(question.document_ids), asked, chat))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()


def _key(namespace: str, digest: str, text: str) -> bytes:
    # Blanks at both ends of a message are left out.
    whole = "\0".join((namespace, digest, text.strip()))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()

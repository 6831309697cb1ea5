"""What has come of each answer to one request, and the outputs it makes. No tensors here."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

from legokv.engine.request import Token
from legokv.serving.question import Question
from legokv.text.spelling import Spelled, Spelling, TokenNames


@dataclass(frozen=True)
class Drawn:
    """An answer's text, and the tokens that write it."""

    text: str
    token_ids: tuple[int, ...]


@dataclass
class _Answer:
    spelling: Spelling
    texts: list[str] = field(default_factory=list)
    """What is to be sent with the last reply."""
    whole: list[str] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    tokens: list[dict[str, object]] = field(default_factory=list)
    """Those that no reply has yet: all of them without a stream."""
    text_len: int = 0
    """Characters of text that replies have, less those of the tokens that they have."""
    num_bytes: int = 0
    """The same in bytes of UTF-8: a token may write a part of a character."""
    ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str = ""


class AnswersSoFar:
    """Takes the tokens of all answers as they come; texts are streamed or kept to the end."""

    def __init__(
        self, question: Question, names: TokenNames, end_ids: Collection[int] = ()
    ) -> None:
        """`end_ids` are the tokens that end an answer and are no part of its text."""
        count = question.answering.num_return_sequences
        self._answers = [_Answer(Spelling(names)) for _ in range(count)]
        self._streamed = question.stream
        self._has_log_probs = question.answering.return_log_probs
        self._end_ids = frozenset(end_ids)

    def add(self, token: Token) -> dict[str, object] | None:
        """Outputs to send now, None if there are none: text, or log-probabilities without any."""
        answer = self._answers[token.sequence_index]
        answer.num_tokens += 1
        answer.finish_reason = token.finish_reason or ""
        answer.ids.append(token.id)
        answer.whole.append(token.text)
        answer.tokens += self._tokens(token)
        if token.log_probs is not None:
            answer.log_probs.append(token.log_probs.log_prob)
        if not self._streamed:
            answer.texts.append(token.text)
            return None
        tokens = _certain(answer, token)
        if not token.text and not tokens:
            return None
        with_log_probs = {"token_log_probs": _json(tokens)} if self._has_log_probs else {}
        return {"text_output": token.text, "sequence_index": token.sequence_index, **with_log_probs}

    def outputs(self) -> dict[str, object]:
        """The last reply's outputs: an answer's value, or a list with one for each of several."""
        outputs = {
            "text_output": self._each(lambda answer: "".join(answer.texts)),
            "finish_reason": self._each(lambda answer: answer.finish_reason),
            "generated_tokens": self._each(lambda answer: answer.num_tokens),
        }
        return {**outputs, **self._log_probs()} if self._has_log_probs else outputs

    def drawn(self, decode: Callable[[Sequence[int]], str]) -> list[Drawn]:
        """The answers as they were drawn, those without that a stop word cut."""
        made = []
        for answer in self._answers:
            ends = answer.finish_reason == "stop" and answer.ids[-1] in self._end_ids
            ids = answer.ids[:-1] if ends else answer.ids
            text = "".join(answer.whole)
            if decode(ids) == text:
                made.append(Drawn(text, tuple(ids)))
        return made

    def _log_probs(self) -> dict[str, object]:
        longest = max(answer.num_tokens for answer in self._answers)
        padded = [
            answer.log_probs + [0.0] * (longest - answer.num_tokens) for answer in self._answers
        ]
        return {
            "cum_log_probs": self._each(lambda answer: sum(answer.log_probs)),
            "output_log_probs": padded,
            "token_log_probs": self._each(
                lambda answer: _json(_cut(answer.tokens, len("".join(answer.texts))))
            ),
        }

    def _each(self, value: Callable[[_Answer], object]) -> object:
        values = [value(answer) for answer in self._answers]
        return values if len(values) > 1 else values[0]

    def _tokens(self, token: Token) -> list[dict[str, object]]:
        """The token with its log-probability and those of the likeliest ones."""
        if token.log_probs is None:
            return []
        spelling = self._answers[token.sequence_index].spelling
        top = [_token(i, spelling.likely(i), log_prob) for i, log_prob in token.log_probs.top]
        spelled = self._spelled(token, spelling)
        return [{**_token(token.id, spelled, token.log_probs.log_prob), "top": top}]

    def _spelled(self, token: Token, spelling: Spelling) -> Spelled:
        if token.finish_reason == "stop" and token.id in self._end_ids:
            return spelling.end(token.id)
        return spelling.push(token.id, last=token.finish_reason is not None)


def _token(token_id: int, spelled: Spelled, log_prob: float) -> dict[str, object]:
    return {
        "token_id": token_id,
        "token": spelled.name,
        "text": spelled.text,
        "bytes": list(spelled.bytes),
        "log_prob": log_prob,
    }


def _certain(answer: _Answer, token: Token) -> list[dict[str, object]]:
    """Tokens whose text the replies have, with this one's: they go out, the others wait.

    What waits at the end wrote of a stop word.
    """
    answer.text_len += len(token.text)
    answer.num_bytes += len(token.text.encode())
    if token.finish_reason is not None:
        certain, answer.tokens = _cut(answer.tokens, answer.text_len), []
        return certain
    count = 0
    for entry in answer.tokens:
        text_len = answer.text_len - len(cast(str, entry["text"]))
        num_bytes = answer.num_bytes - len(cast(list[int], entry["bytes"]))
        if text_len < 0 or num_bytes < 0:
            break
        answer.text_len, answer.num_bytes, count = text_len, num_bytes, count + 1
    certain, answer.tokens = answer.tokens[:count], answer.tokens[count:]
    return certain


def _cut(tokens: list[dict[str, object]], text_len: int) -> list[dict[str, object]]:
    """The tokens without what they write past so many characters: it is no part of the text."""
    surplus = "".join(str(token["text"]) for token in tokens)[text_len:]
    num_characters, num_bytes = len(surplus), len(surplus.encode())
    kept = []
    for token in reversed(tokens):
        text, own = cast(str, token["text"]), cast(list[int], token["bytes"])
        kept.append(
            token
            | {
                "text": text[: max(0, len(text) - num_characters)],
                "bytes": own[: max(0, len(own) - num_bytes)],
            }
        )
        num_characters -= min(num_characters, len(text))
        num_bytes -= min(num_bytes, len(own))
    return kept[::-1]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

"""Replies of `generate` in OpenAI's shapes: whole ones, a stream's pieces, usage, probabilities."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from legokv.serving.gateway.models import Values
from legokv.serving.gateway.streams import event
from legokv.serving.gateway.tool_reading import Arguments, Item, ToolCall, ToolReader

DONE = b"data: [DONE]\n\n"
_SAID_ELSEWHERE = (
    *("text_output", "sequence_index", "finish_reason", "generated_tokens", "prompt_tokens"),
    *("request_id", "token_log_probs", "output_log_probs", "cum_log_probs"),
)
"""Outputs of `generate` that OpenAI's objects have a place for, or a header."""


def usage_of(values: Values) -> dict[str, Any]:
    """What an answer took; OpenAI's counts, and ours beside them."""
    generated = sum(listed(values["generated_tokens"]))
    own = {name: value for name, value in values.items() if name not in _SAID_ELSEWHERE}
    return {
        "prompt_tokens": values["prompt_tokens"],
        "completion_tokens": generated,
        "total_tokens": values["prompt_tokens"] + generated,
        "prompt_tokens_details": {
            "cached_tokens": values.get("cached_tokens", 0),
            "cache_write_tokens": values.get("compiled_tokens", 0),
        },
        "completion_tokens_details": {"reasoning_tokens": 0},
        "legokv": {"cached_tokens": 0, **own},
    }


def listed(value: Any) -> list[Any]:
    """An output of each of several answers, or of the one."""
    return value if isinstance(value, list) else [value]


def finish_reason_of(reason: str, num_calls: int = 0) -> str:
    """OpenAI's word: an answer whose time was over was cut as one that was too long."""
    if num_calls and reason == "stop":
        return "tool_calls"
    return "stop" if reason == "stop" else "length"


def chat_log_probs(tokens: str | None) -> dict[str, Any] | None:
    """Log-probabilities of a chat's tokens, from `token_log_probs`."""
    if tokens is None:
        return None
    return {"content": [_chat_token(token) for token in json.loads(tokens)], "refusal": None}


def _chat_token(token: Mapping[str, Any]) -> dict[str, Any]:
    top = [_spelled(other) for other in token["top"]]
    return {**_drawn(token), "top_logprobs": top}


def _drawn(token: Mapping[str, Any]) -> dict[str, Any]:
    """A token of the answer: its text is what it adds, so that all of them join to the answer."""
    # No number stands for what is impossible: JSON has none.
    log_prob = max(float(token["log_prob"]), -9999.0)
    return {"token": token["text"], "logprob": log_prob, "bytes": token["bytes"]}


def _spelled(token: Mapping[str, Any]) -> dict[str, Any]:
    """A token that was not drawn: one that is no text by itself goes by its vocabulary's name."""
    return {**_drawn(token), "token": token["text"] or token["token"]}


def completion_log_probs(tokens: str | None, offset: int = 0) -> dict[str, Any] | None:
    """The same in the older shape of completions; `offset` is where the text begins."""
    if tokens is None:
        return None
    made: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
    offsets = []
    for token in json.loads(tokens):
        spelled = _drawn(token)
        made["tokens"].append(spelled["token"])
        made["token_logprobs"].append(spelled["logprob"])
        top = map(_spelled, token["top"])
        made["top_logprobs"].append({other["token"]: other["logprob"] for other in top} or None)
        offsets.append(offset)
        offset += len(token["text"])
    return {**made, "text_offset": offsets}


def content_of(items: Sequence[Item]) -> str:
    """The text among what was read."""
    return "".join(item for item in items if isinstance(item, str))


def call_deltas(items: Sequence[Item], num_begun: int = 0) -> list[dict[str, Any]]:
    """Calls and arguments as a stream has them; `num_begun` calls began before."""
    deltas: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, ToolCall):
            function = {"name": item.name, "arguments": ""}
            call = {"index": num_begun, "id": item.id, "type": "function", "function": function}
            deltas.append(call)
            num_begun += 1
        elif isinstance(item, Arguments):
            if not deltas:
                deltas.append({"index": num_begun - 1, "function": {"arguments": ""}})
            deltas[-1]["function"]["arguments"] += item.text
    return deltas


@dataclass
class Answer:
    """One of a request's answers while it comes; `reader` finds its tool calls."""

    reader: ToolReader | None = None
    most_calls: int = 1024
    num_calls: int = 0
    num_characters: int = 0
    begun: bool = False

    def split(self, text: str, *, last: bool = False) -> list[Item]:
        """What is certain with this piece, in its order; calls past the most are left out."""
        if self.reader is None:
            return [text] if text else []
        items = [*self.reader.push(text), *(self.reader.end() if last else ())]
        kept = []
        for item in items:
            self.num_calls += isinstance(item, ToolCall)
            if isinstance(item, str) or self.num_calls <= self.most_calls:
                kept.append(item)
        return kept


@dataclass
class Replies:
    """Makes one request's objects. `is_chat`: chat completions, else completions."""

    model: str
    is_chat: bool
    answers: list[Answer]
    with_usage: bool = False
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(14)}"
        self.created = int(time.time())

    def whole(self, values: Values) -> dict[str, Any]:
        """The object of an answer that was not streamed."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        texts, reasons = listed(values["text_output"]), listed(values["finish_reason"])
        tokens = listed(values.get("token_log_probs"))
        tokens = tokens if len(tokens) == len(texts) else [None] * len(texts)
        choices = [
            self._choice(number, text, reason, log_probs)
            for number, (text, reason, log_probs) in enumerate(
                zip(texts, reasons, tokens, strict=True)
            )
        ]
        return {**self._head(kind), "choices": choices, "usage": usage_of(values)}

    def _choice(self, number: int, text: str, reason: str, tokens: str | None) -> dict[str, Any]:
        if not self.is_chat:
            log_probs = completion_log_probs(tokens)
            finish = finish_reason_of(reason)
            return {"index": number, "text": text, "logprobs": log_probs, "finish_reason": finish}
        items = self.answers[number].split(text, last=True)
        content, calls = content_of(items), call_deltas(items)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = [
                {name: value for name, value in call.items() if name != "index"} for call in calls
            ]
            message["content"] = content or None
        return {
            "index": number,
            "message": message,
            "logprobs": chat_log_probs(tokens),
            "finish_reason": finish_reason_of(reason, len(calls)),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }

    def first(self) -> bytes:
        """What a chat's stream begins with: the role of each answer."""
        if not self.is_chat:
            return b""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(n, delta, None, None) for n in range(len(self.answers)))

    def piece(self, values: Values) -> bytes:
        """The event for one piece of text, nothing while it may be a tool call's beginning."""
        number = values.get("sequence_index", 0)
        answer, text = self.answers[number], values["text_output"]
        tokens = values.get("token_log_probs")
        if not self.is_chat:
            log_probs = completion_log_probs(tokens, answer.num_characters)
            answer.num_characters += len(text)
            return self._chunk(number, {"text": text}, log_probs, None)
        num_begun = answer.num_calls
        items = answer.split(text)
        if not items and tokens is None:
            return b""
        return self._chunk(number, _delta(items, num_begun), chat_log_probs(tokens), None)

    def last(self, values: Values) -> bytes:
        """The events that end a stream."""
        parts = [
            self._end(number, reason)
            for number, reason in enumerate(listed(values["finish_reason"]))
        ]
        if self.with_usage:
            chunk = {**self._head(self._chunk_kind), "choices": [], "usage": usage_of(values)}
            parts.append(event(chunk))
        return b"".join([*parts, DONE])

    def _end(self, number: int, reason: str) -> bytes:
        answer = self.answers[number]
        if not self.is_chat:
            return self._chunk(number, {"text": ""}, None, finish_reason_of(reason))
        num_begun = answer.num_calls
        items = answer.split("", last=True)
        before = self._chunk(number, _delta(items, num_begun), None, None) if items else b""
        finish = finish_reason_of(reason, answer.num_calls)
        return before + self._chunk(number, {}, None, finish)

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(
        self, number: int, delta: dict[str, Any], log_probs: Any, finish_reason: str | None
    ) -> bytes:
        content = {"delta": delta} if self.is_chat else delta
        choice = {"index": number, **content, "logprobs": log_probs, "finish_reason": finish_reason}
        usage = {"usage": None} if self.with_usage else {}
        return event({**self._head(self._chunk_kind), "choices": [choice], **usage})


def _delta(items: Sequence[Item], num_begun: int) -> dict[str, Any]:
    content, calls = content_of(items), call_deltas(items, num_begun)
    delta: dict[str, Any] = {"content": content} if content or not calls else {}
    return {**delta, "tool_calls": calls} if calls else delta

"""Which fields of a chat or completion are taken, how, and what the model `generate` gets of them.

Three tables: taken, taken and without effect, and refused unless their value asks for nothing.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from legokv.engine.request import (
    MAX_RETURN_SEQUENCES,
    MAX_TIMEOUT_SECONDS,
    MAX_TOP_LOG_PROBS,
    MODES,
)
from legokv.engine.sampling import NUMBER_BOUNDS
from legokv.errors import ApiRefused, exact, kind_of
from legokv.serving import fields
from legokv.serving.fields import Reader, Request
from legokv.serving.gateway.models import json_text

MAX_STOPS = 64


def number(request: Request, name: str, *, low: float, high: float, above: bool = False) -> float:
    """A number from `low` to `high`, or `above` it."""
    value = fields.number(request, name)
    if above and value == low:
        raise ApiRefused(f"{name!r} is above {exact(low)} and at most {exact(high)}", param=name)
    if not low <= value <= high:
        raise ApiRefused(
            f"{name!r} is {exact(value)}, outside {exact(low)} to {exact(high)}", param=name
        )
    return value


def items_reader() -> Reader:
    """A reader of a list of anything: one of its own, as OpenAPI describes each list by itself."""

    def read(request: Request, name: str) -> list[Any]:
        return fields.items(request, name)

    return read


# Lists that `turns` and `tool_calls` read.
messages, documents, tools = items_reader(), items_reader(), items_reader()


def tool_choice(request: Request, name: str) -> Any:
    """A word or a function's name, that `tool_calls` reads."""
    return request[name]


def stops(request: Request, name: str) -> tuple[str, ...]:
    """One text or a list of them."""
    value = request[name]
    words = (fields.text(request, name),) if isinstance(value, str) else fields.texts(request, name)
    if len(words) > MAX_STOPS:
        raise ApiRefused(
            f"{name!r} has {len(words)} texts, at most {MAX_STOPS} are taken", param=name
        )
    return words


def seed(request: Request, name: str) -> int:
    """A whole number; one below 0 stands for another above."""
    value = fields.whole_number(request, name, low=-(2**63), high=fields.MAX_UINT64)
    return value & fields.MAX_UINT64


def json_object(request: Request, name: str) -> dict[str, Any]:
    """An object of anything."""
    value = request[name]
    if not isinstance(value, dict):
        raise ApiRefused(f"{name!r} is an object, not {kind_of(value)}", param=name)
    return value


def logit_bias(request: Request, name: str) -> dict[str, float]:
    """Numbers by token id."""
    record = json_object(request, name)
    for token_id, value in record.items():
        if not (token_id.isascii() and token_id.isdigit()):
            raise ApiRefused(
                f"{name!r} names {token_id[:80]!r}: a token's id is a whole number", param=name
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ApiRefused(
                f"{name!r} of token {token_id[:80]!r} is a number, not {kind_of(value)}", param=name
            )
    return record


def text_or_parts(request: Request, name: str) -> Any:
    """A text or a list, which are read later."""
    return request[name]


def link(request: Request, name: str) -> dict[str, Any]:
    """What of the documents is computed again, as fields of `generate`."""
    value = json_object(request, name)
    fields.refuse_unknown(value, LINK)
    return {key: LINK[key](value, key) for key in value if value[key] is not None}


LINK: dict[str, Reader] = {
    "mode": partial(fields.optional_choice, choices=MODES),
    "link_tokens": partial(fields.whole_number, low=0, high=fields.MAX_INT32),
    "recompute_percent": partial(number, low=0, high=100),
}
SAMPLING: dict[str, Reader] = {
    name: partial(number, low=low, high=high, above=name == "top_p")
    for name, (low, high) in NUMBER_BOUNDS.items()
}
_WHOLE = partial(fields.whole_number, high=fields.MAX_INT32)
# By their names in `generate`, where they have another.
_COMMON: dict[str, Reader] = {
    "model": fields.text,
    "max_tokens": partial(_WHOLE, low=1),
    **SAMPLING,
    "top_k": partial(_WHOLE, low=-1),
    "n": partial(fields.whole_number, low=1, high=MAX_RETURN_SEQUENCES),
    "stop": stops,
    "stop_token_ids": partial(fields.whole_numbers, low=0, high=fields.MAX_INT32),
    "min_tokens": partial(_WHOLE, low=0),
    "ignore_eos": fields.flag,
    "seed": seed,
    "logit_bias": logit_bias,
    "response_format": json_object,
    "stream": fields.flag,
    "stream_options": json_object,
    "link": link,
    "timeout": partial(number, low=0, high=MAX_TIMEOUT_SECONDS, above=True),
}
CHAT: dict[str, Reader] = {
    **_COMMON,
    "messages": messages,
    "max_completion_tokens": partial(_WHOLE, low=1),
    "logprobs": fields.flag,
    "top_logprobs": partial(fields.whole_number, low=0, high=MAX_TOP_LOG_PROBS),
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": fields.flag,
    "documents": documents,
    "chat_template_kwargs": json_object,
}
COMPLETION: dict[str, Reader] = {
    **_COMMON,
    "prompt": text_or_parts,
    "logprobs": partial(fields.whole_number, low=0, high=MAX_TOP_LOG_PROBS),
}
WITHOUT_EFFECT = (
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_options"),
    *("prompt_cache_retention", "service_tier", "prediction"),
)
ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "skip_special_tokens": (True,),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "reasoning_effort": (),
    "audio": (),
    "functions": ([],),
    "function_call": ("none",),
    "web_search_options": (),
    "cache_salt": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "prompt_logprobs": (0,),
}
_STREAM_OPTIONS = ("include_usage", "include_obfuscation", "continuous_usage_stats")
_SAME_NAME = (
    *("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "min_tokens", "seed"),
)
_RENAMED = {"n": "num_return_sequences", "timeout": "timeout_seconds"}
_OPENAI_NAMES = {
    **{ours: theirs for theirs, ours in _RENAMED.items()},
    "stop_words": "stop",
    "return_log_probs": "logprobs",
    "text_input": "prompt",
}
CHAT_NAMES = {**_OPENAI_NAMES, "num_top_log_probs": "top_logprobs"}
COMPLETION_NAMES = {**_OPENAI_NAMES, "num_top_log_probs": "logprobs"}
"""What clients call the fields of `generate` that have other names there."""


def names_of(values: Mapping[str, Any], others: Mapping[str, str]) -> dict[str, str]:
    """What a client calls the fields of `generate`, after those that it sent."""
    names = {**{name: name for name in values}, **others}
    if "max_completion_tokens" in values:
        names["max_tokens"] = "max_completion_tokens"
    if "timeout" not in values:
        names["timeout_seconds"] = "the server's default_timeout_seconds"
    return names


def for_generate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `generate` from the values that were read, but for the prompt's own."""
    chosen = {name: values[name] for name in _SAME_NAME if name in values}
    chosen |= {ours: values[name] for name, ours in _RENAMED.items() if name in values}
    chosen.setdefault("temperature", 1.0)
    max_tokens = values.get("max_completion_tokens", values.get("max_tokens"))
    if max_tokens is not None:
        chosen["max_tokens"] = max_tokens
    if values.get("ignore_eos"):
        # Load tests want answers of one length.
        if max_tokens is None:
            raise ApiRefused(
                "'ignore_eos' needs 'max_tokens': an answer has so many then", param="ignore_eos"
            )
        chosen["min_tokens"] = max_tokens
    if values.get("top_k", 0) > 0:  # -1 is none to others
        chosen["top_k"] = values["top_k"]
    if values.get("stop"):
        chosen["stop_words"] = values["stop"]
    if values.get("stop_token_ids"):
        chosen["stop_token_ids"] = values["stop_token_ids"]
    for name in ("logit_bias", "response_format", "chat_template_kwargs"):
        if values.get(name):
            chosen[name] = json_text(values[name])
    if values.get("stream"):
        chosen["stream"] = True
    return {**chosen, **values.get("link", {}), **_log_probs(values)}


def _log_probs(values: Mapping[str, Any]) -> dict[str, Any]:
    asked = values.get("logprobs")
    if isinstance(asked, bool):
        top = values.get("top_logprobs", 0)
        if top and not asked:
            raise ApiRefused("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")
        return {"return_log_probs": True, "num_top_log_probs": top} if asked else {}
    if asked is None:
        if values.get("top_logprobs"):
            raise ApiRefused("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")
        return {}
    return {"return_log_probs": True, "num_top_log_probs": asked}


def wants_usage(values: Mapping[str, Any]) -> bool:
    """Whether a stream ends with what it took; ApiRefused for options that are not offered."""
    options = values.get("stream_options")
    if options is None:
        return False
    if not values.get("stream"):
        raise ApiRefused("'stream_options' needs 'stream' to be true", param="stream_options")
    for name in options:
        if name not in _STREAM_OPTIONS:
            raise ApiRefused(f"unknown stream option {name[:80]!r}", param="stream_options")
    return fields.flag(options, "include_usage")

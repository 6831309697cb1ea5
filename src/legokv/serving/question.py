"""A generate request's fields, checked and typed: what is asked, about what, answered how."""

from collections.abc import Mapping
from dataclasses import dataclass

from legokv.documents.document import DEFAULT_NAMESPACE, check_namespace
from legokv.engine.request import (
    LINK_TOKENS,
    MAX_RETURN_SEQUENCES,
    MAX_TOP_LOG_PROBS,
    MODES,
    AnswerOptions,
)
from legokv.engine.sampling import SamplingOptions
from legokv.errors import InvalidRequest
from legokv.serving import fields
from legokv.serving.settings import Settings

OPTION_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "num_return_sequences",
    "return_log_probs",
    "num_top_log_probs",
    "timeout_seconds",
)

INPUT_NAMES = (
    "text_input",
    "document_ids",
    "namespace",
    "system_text",
    "mode",
    "link_tokens",
    "max_tokens",
    "stop_words",
    *OPTION_NAMES,
    "stream",
)


@dataclass(frozen=True)
class Question:
    """One request. `max_tokens` None: the server's default, or what the context has left."""

    text: str
    document_ids: tuple[str, ...]
    namespace: str
    system_text: str | None
    mode: str
    link_tokens: int
    max_tokens: int | None
    stop_words: tuple[str, ...]
    sampling: SamplingOptions
    stream: bool
    answering: AnswerOptions


def question_from_fields(values: Mapping[str, object], settings: Settings) -> Question:
    """The question in a request's fields, texts as UTF-8 bytes; InvalidRequest says what is wrong.

    Only text_input must be there. Unknown fields are refused by name.
    """
    fields.refuse_unknown(values, INPUT_NAMES)
    arguments = {name: _decoded(name, value) for name, value in values.items()}
    return Question(
        text=_bounded_text(arguments, "text_input", settings),
        document_ids=_document_ids(arguments, settings),
        namespace=check_namespace(
            fields.optional_text(arguments, "namespace") or DEFAULT_NAMESPACE
        ),
        system_text=_bounded_text(arguments, "system_text", settings)
        if "system_text" in arguments
        else None,
        mode=_mode(arguments),
        link_tokens=fields.whole_number(
            arguments, "link_tokens", default=LINK_TOKENS, low=0, high=fields.MAX_INT32
        ),
        max_tokens=fields.optional_whole_number(
            arguments, "max_tokens", low=1, high=fields.MAX_INT32
        ),
        stop_words=_stop_words(arguments),
        sampling=sampling_options(arguments),
        stream=fields.flag(arguments, "stream", default=False),
        answering=answer_options(arguments, settings.default_timeout_seconds),
    )


def _decoded(name: str, value: object) -> object:
    """`value` with bytes read as UTF-8, also inside a list."""
    if isinstance(value, list):
        return [_decoded(name, item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{name!r} is not UTF-8: byte 0x{value[error.start]:02x} at offset {error.start} "
            f"of {len(value)}"
        ) from None


def _bounded_text(arguments: fields.Request, name: str, settings: Settings) -> str:
    text = fields.text(arguments, name)
    num_bytes = len(text.encode())
    if num_bytes > settings.max_question_bytes:
        raise InvalidRequest(
            f"{name!r} has {num_bytes} bytes, at most {settings.max_question_bytes} are taken"
        )
    return text


def _document_ids(arguments: fields.Request, settings: Settings) -> tuple[str, ...]:
    ids = tuple(arguments.get("document_ids", ()))
    if len(ids) > settings.max_documents:
        raise InvalidRequest(
            f"'document_ids' names {len(ids)} documents, at most {settings.max_documents} are taken"
        )
    return ids


def _mode(arguments: fields.Request) -> str:
    mode = fields.text(arguments, "mode") if "mode" in arguments else MODES[0]
    if mode not in MODES:
        raise InvalidRequest(f"'mode' is one of {', '.join(MODES)}, not {mode[:80]!r}")
    if mode != MODES[0] and "link_tokens" in arguments:
        raise InvalidRequest(f"'link_tokens' belongs to mode {MODES[0]}, the request has {mode}")
    return mode


def _stop_words(arguments: fields.Request) -> tuple[str, ...]:
    words = tuple(arguments.get("stop_words", ()))
    if "" in words:
        raise InvalidRequest(f"stop word {words.index('') + 1} of {len(words)} is empty")
    return words


"""As TensorRT-LLM's Triton models call them, where they have them."""


def sampling_options(arguments: fields.Request) -> SamplingOptions:
    """Greedy unless something asks for a draw: a temperature, or another at temperature 1 then.

    A default that is sent asks for nothing: many clients send them all.
    """
    top_k = fields.whole_number(arguments, "top_k", default=0, low=0, high=fields.MAX_INT32)
    top_p = fields.number(arguments, "top_p", default=1.0)
    min_p = fields.number(arguments, "min_p", default=0.0)
    draws = (top_k, top_p, min_p, arguments.get("num_return_sequences", 1)) != (0, 1.0, 0.0, 1)
    return SamplingOptions(
        temperature=fields.number(arguments, "temperature", default=1.0 if draws else 0.0),
        top_k=top_k,
        top_p=top_p,
        seed=fields.optional_whole_number(arguments, "seed", low=0, high=fields.MAX_UINT64),
        min_p=min_p,
        repetition_penalty=fields.number(arguments, "repetition_penalty", default=1.0),
        presence_penalty=fields.number(arguments, "presence_penalty", default=0.0),
        frequency_penalty=fields.number(arguments, "frequency_penalty", default=0.0),
    )


def answer_options(arguments: fields.Request, default_timeout_seconds: float) -> AnswerOptions:
    """What is wanted of the answers; the server's time limit unless the request has its own."""
    most = fields.MAX_INT32
    return AnswerOptions(
        min_tokens=fields.whole_number(arguments, "min_tokens", default=0, low=0, high=most),
        num_return_sequences=fields.whole_number(
            arguments, "num_return_sequences", default=1, low=1, high=MAX_RETURN_SEQUENCES
        ),
        return_log_probs=fields.flag(arguments, "return_log_probs", default=False),
        num_top_log_probs=fields.whole_number(
            arguments, "num_top_log_probs", default=0, low=0, high=MAX_TOP_LOG_PROBS
        ),
        timeout_seconds=fields.number(
            arguments, "timeout_seconds", default=default_timeout_seconds
        ),
    )

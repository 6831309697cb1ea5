"""A generate request's fields, checked and typed: what is asked, about what, answered how."""

from collections.abc import Mapping
from dataclasses import dataclass

from legokv.documents.document import DEFAULT_NAMESPACE, check_namespace
from legokv.engine.request import LINK_TOKENS, MODES, AnswerOptions
from legokv.engine.sampling import SamplingOptions
from legokv.errors import InvalidRequest
from legokv.serving import fields
from legokv.serving.options import OPTION_NAMES, answer_options, sampling_options
from legokv.serving.settings import Settings

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


def question_from_fields(given: Mapping[str, object], settings: Settings) -> Question:
    """The question in a request's fields, texts as UTF-8 bytes; InvalidRequest says what is wrong.

    Only text_input must be there. Unknown fields are refused by name.
    """
    fields.refuse_unknown(given, INPUT_NAMES)
    known = {name: _decoded(name, value) for name, value in given.items()}
    return Question(
        text=_bounded_text(known, "text_input", settings),
        document_ids=_document_ids(known, settings),
        namespace=check_namespace(fields.optional_text(known, "namespace") or DEFAULT_NAMESPACE),
        system_text=_bounded_text(known, "system_text", settings)
        if "system_text" in known
        else None,
        mode=_mode(known),
        link_tokens=fields.whole_number(
            known, "link_tokens", default=LINK_TOKENS, low=0, high=fields.MAX_INT32
        ),
        max_tokens=fields.optional_whole_number(known, "max_tokens", low=1, high=fields.MAX_INT32),
        stop_words=_stop_words(known),
        sampling=sampling_options(known),
        stream=fields.flag(known, "stream", default=False),
        answering=answer_options(known, settings.default_timeout_seconds),
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


def _bounded_text(known: fields.Request, name: str, settings: Settings) -> str:
    text = fields.text(known, name)
    num_bytes = len(text.encode())
    if num_bytes > settings.max_question_bytes:
        raise InvalidRequest(
            f"{name!r} has {num_bytes} bytes, at most {settings.max_question_bytes} are taken"
        )
    return text


def _document_ids(known: fields.Request, settings: Settings) -> tuple[str, ...]:
    ids = tuple(known.get("document_ids", ()))
    if len(ids) > settings.max_documents:
        raise InvalidRequest(
            f"'document_ids' names {len(ids)} documents, at most {settings.max_documents} are taken"
        )
    return ids


def _mode(known: fields.Request) -> str:
    mode = fields.text(known, "mode") if "mode" in known else MODES[0]
    if mode not in MODES:
        raise InvalidRequest(f"'mode' is one of {', '.join(MODES)}, not {mode[:80]!r}")
    if mode != MODES[0] and "link_tokens" in known:
        raise InvalidRequest(f"'link_tokens' belongs to mode {MODES[0]}, the request has {mode}")
    return mode


def _stop_words(known: fields.Request) -> tuple[str, ...]:
    words = tuple(known.get("stop_words", ()))
    if "" in words:
        raise InvalidRequest(f"stop word {words.index('') + 1} of {len(words)} is empty")
    return words

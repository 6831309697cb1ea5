"""A generate request's fields, checked and typed: what is asked, about what, answered how."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

from legokv.documents.document import MAX_ID_LEN, namespace_or_default
from legokv.engine.request import (
    MAX_RETURN_SEQUENCES,
    MAX_TOP_LOG_PROBS,
    MODES,
    MODES_WITH_BUDGET,
    AnswerOptions,
    check_budget,
    check_stop_words,
)
from legokv.engine.sampling import SamplingOptions
from legokv.errors import InvalidRequest
from legokv.serving import fields
from legokv.serving.conversation_reading import read_conversation
from legokv.serving.settings import Settings
from legokv.serving.tensorrt_llm import TENSORRT_LLM_NAMES, without_tensorrt_llm
from legokv.text.conversation import Conversation
from legokv.text.switches import Switches, parse_switches

MAX_REPLY_LOG_PROBS = 2**17
"""Most log-probabilities of one reply, the likeliest tokens' among them; about 200 bytes each."""
MAX_REPLY_TOKENS = 2**20
"""Most tokens of several answers together."""

"""As TensorRT-LLM's Triton models call them, where they have them."""
_SAMPLING: dict[str, fields.Reader] = {
    "temperature": fields.if_given(fields.number),
    "top_k": partial(fields.whole_number, low=0, high=fields.MAX_INT32),
    "top_p": partial(fields.number, default=1.0),
    "min_p": fields.number,
    "repetition_penalty": partial(fields.number, default=1.0),
    "presence_penalty": fields.number,
    "frequency_penalty": fields.number,
    "seed": fields.if_given(partial(fields.whole_number, low=0, high=fields.MAX_UINT64)),
    "logit_bias": fields.json_record,
}
_ANSWERING: dict[str, fields.Reader] = {
    "min_tokens": partial(fields.whole_number, low=0, high=fields.MAX_INT32),
    "num_return_sequences": partial(
        fields.whole_number, default=1, low=1, high=MAX_RETURN_SEQUENCES
    ),
    "return_log_probs": fields.flag,
    "num_top_log_probs": partial(fields.whole_number, low=0, high=MAX_TOP_LOG_PROBS),
    "timeout_seconds": fields.if_given(fields.number),
    "stop_token_ids": partial(fields.whole_numbers, low=0, high=fields.MAX_INT32),
    "response_format": fields.if_given(fields.text),
}
_FIELDS: dict[str, fields.Reader] = {
    "text_input": fields.if_given(fields.text),
    "messages": fields.if_given(fields.text),
    "tools": fields.if_given(fields.text),
    "document_ids": fields.texts,
    "namespace": fields.if_given(fields.text),
    "system_text": fields.if_given(fields.text),
    "apply_chat_template": partial(fields.flag, default=True),
    "chat_template_kwargs": fields.if_given(fields.text),
    "mode": fields.if_given(fields.text),
    "link_tokens": fields.if_given(partial(fields.whole_number, low=0, high=fields.MAX_INT32)),
    "recompute_percent": fields.if_given(fields.number),
    "max_tokens": fields.if_given(partial(fields.whole_number, low=1, high=fields.MAX_INT32)),
    "stop_words": fields.texts,
    **_SAMPLING,
    **_ANSWERING,
    "stream": fields.flag,
    "count_only": fields.flag,
}
INPUT_NAMES = (*_FIELDS, *TENSORRT_LLM_NAMES)


@dataclass(frozen=True)
class Question:
    """One request. `system_text` is the server's unless it brings one; None: neither has any.

    `max_tokens` None: the server's default, or what the context has left. Without a template the
    text is the end of the prompt as it is, blanks and all. With a `conversation` the text is empty,
    and the documents are those of its messages. `count_only`: how long the prompt is, no answer.
    """

    text: str
    conversation: Conversation | None
    document_ids: tuple[str, ...]
    namespace: str
    system_text: str | None
    apply_chat_template: bool
    switches: Switches
    mode: str
    link_tokens: int | None
    recompute_percent: float | None
    max_tokens: int | None
    stop_words: tuple[str, ...]
    sampling: SamplingOptions
    stream: bool
    answering: AnswerOptions
    count_only: bool = False


def question_from_fields(payload: Mapping[str, object], settings: Settings) -> Question:
    """The question in a request's fields, texts as UTF-8 bytes; InvalidRequest says what is wrong.

    Only text_input must be there, or messages. Unknown fields are refused by name.
    """
    fields.refuse_unknown(payload, INPUT_NAMES)
    _check_ids(payload.get("document_ids", ()), settings.max_documents)
    request = fields.decoded(payload)
    values = fields.read(without_tensorrt_llm(request), _FIELDS)
    _check(values, settings)
    conversation = _conversation(values, settings)
    return Question(
        text=values["text_input"] or "",
        conversation=conversation,
        document_ids=conversation.document_ids if conversation else values["document_ids"],
        namespace=namespace_or_default(values["namespace"]),
        system_text=_system_text(values, settings),
        apply_chat_template=values["apply_chat_template"],
        switches=parse_switches(values["chat_template_kwargs"] or "{}", "'chat_template_kwargs'"),
        mode=values["mode"] or settings.default_mode,
        link_tokens=_link_tokens(values, settings),
        recompute_percent=values["recompute_percent"],
        max_tokens=values["max_tokens"],
        stop_words=values["stop_words"],
        sampling=_sampling(values),
        stream=values["stream"],
        answering=_answering(values, settings.default_timeout_seconds),
        count_only=values["count_only"],
    )


def check_reply_size(question: Question, longest: int) -> None:
    """InvalidRequest where answers of `longest` tokens would make a reply past the bounds.

    A stream's reply has no likeliest tokens but its own piece's.
    """
    answers, options = question.answering.num_return_sequences, question.answering
    asked = f"{answers} answers of {longest} tokens"
    if answers > 1 and answers * longest > MAX_REPLY_TOKENS:
        raise InvalidRequest(
            f"{asked} are {answers * longest}, at most {MAX_REPLY_TOKENS} are taken: "
            "ask for fewer answers or a smaller 'max_tokens'"
        )
    each = 1 + (0 if question.stream else options.num_top_log_probs)
    count = answers * longest * each
    if options.return_log_probs and count > MAX_REPLY_LOG_PROBS:
        raise InvalidRequest(
            f"{asked} with {each} log-probabilities each are {count}, at most "
            f"{MAX_REPLY_LOG_PROBS} are taken: ask for fewer answers, 'num_top_log_probs' or "
            "'max_tokens', or with 'stream'"
        )


def _conversation(values: fields.Request, settings: Settings) -> Conversation | None:
    """What the messages say, if there are any; InvalidRequest for two ways to say the prompt."""
    others = ("messages", "system_text", "chat_template_kwargs")
    named = [name for name in others if values[name] is not None]
    if named and not values["apply_chat_template"]:
        raise InvalidRequest(
            f"{named[0]!r} needs the chat template, and 'apply_chat_template' is false"
        )
    if values["messages"] is None:
        if values["text_input"] is None:
            raise InvalidRequest(fields.NO_QUESTION)
        if values["tools"] is not None:
            raise InvalidRequest("'tools' belong to 'messages', and the request has none")
        return None
    others = ("text_input", "system_text", "document_ids")
    named = [name for name in others if values[name] not in (None, ())]
    if named:
        raise InvalidRequest(
            f"'messages' and {named[0]!r} are both there: messages have their own texts, roles "
            "and documents"
        )
    conversation = read_conversation(
        values["messages"], values["tools"], settings.max_question_bytes
    )
    _check_ids(conversation.document_ids, settings.max_documents, "messages")
    return conversation


def _link_tokens(values: fields.Request, settings: Settings) -> int | None:
    """The request's, or the server's where it has no budget and its mode takes one."""
    mode, own = values["mode"] or settings.default_mode, values["link_tokens"]
    if own is None and values["recompute_percent"] is None and mode in MODES_WITH_BUDGET:
        return settings.default_link_tokens
    return cast(int | None, own)


def _system_text(values: fields.Request, settings: Settings) -> str | None:
    own: str | None = values["system_text"]
    return settings.own_system_text if own is None else own


def _check_ids(ids: object, max_documents: int, name: str = "document_ids") -> None:
    """InvalidRequest for too many ids, or one too long, before anything is done with them."""
    if not isinstance(ids, list | tuple):
        return
    if len(ids) > max_documents:
        raise InvalidRequest(
            f"{name!r} names {len(ids)} documents, at most {max_documents} are taken"
        )
    for place, item in enumerate(ids, 1):
        if isinstance(item, str | bytes) and len(item) > MAX_ID_LEN:
            raise InvalidRequest(
                f"id {place} of {len(ids)} in {name!r} has {len(item)} bytes, at most "
                f"{MAX_ID_LEN} are taken"
            )


def _check(values: fields.Request, settings: Settings) -> None:
    """InvalidRequest for what a setting or another field does not allow."""
    for name in ("text_input", "system_text"):
        num_bytes = len((values[name] or "").encode())
        if num_bytes > settings.max_question_bytes:
            raise InvalidRequest(
                f"{name!r} has {num_bytes} bytes, at most {settings.max_question_bytes} are taken"
            )
    mode, words = values["mode"], values["stop_words"]
    if mode is not None and mode not in MODES:
        raise InvalidRequest(f"'mode' is one of {', '.join(MODES)}, not {mode[:80]!r}")
    check_budget(mode or settings.default_mode, values["link_tokens"], values["recompute_percent"])
    if mode not in (None, *MODES_WITH_BUDGET) and values["link_tokens"] is not None:
        raise InvalidRequest(
            f"'link_tokens' belongs to modes {', '.join(MODES_WITH_BUDGET)}, the request has {mode}"
        )
    check_stop_words(words)


def _sampling(values: fields.Request) -> SamplingOptions:
    """Greedy unless something asks for a draw: a temperature, or another at temperature 1 then.

    A default that is sent asks for nothing: many clients send them all.
    """
    asked = [values[name] for name in ("top_k", "top_p", "min_p", "num_return_sequences")]
    chosen = {name: values[name] for name in _SAMPLING}
    if chosen["temperature"] is None:
        chosen["temperature"] = 0.0 if asked == [0, 1.0, 0.0, 1] else 1.0
    return SamplingOptions(**chosen)


def _answering(values: fields.Request, default_timeout_seconds: float) -> AnswerOptions:
    """What is choices of the answers; the server's time limit unless the request has its own."""
    choices = {name: values[name] for name in _ANSWERING}
    if choices["timeout_seconds"] is None:
        choices["timeout_seconds"] = default_timeout_seconds
    return AnswerOptions(**choices)

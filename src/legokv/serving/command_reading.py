"""Reads a command to the engine as strictly as a client's own fields. No tensors."""

from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from functools import partial
from typing import Any, TypeVar

from legokv.chunks.chunk import MAX_TOKEN_ID
from legokv.documents.document import check_namespace
from legokv.engine.request import MODES, AnswerOptions
from legokv.engine.sampling import SamplingOptions
from legokv.errors import InvalidRequest
from legokv.serving import fields
from legokv.serving.messages import (
    WARM_TIERS,
    Cancel,
    Command,
    Compile,
    Drop,
    Find,
    Generate,
    Probe,
    PromptSegment,
    Rank,
    Warm,
)

Options = TypeVar("Options", SamplingOptions, AnswerOptions)

MAX_REQUEST_ID_LEN = 256
MAX_KEY_LEN = 128
_MAX_ADDRESS_LEN = 4096


def decode_command(body: bytes) -> Command:
    """The command in `body`; InvalidRequest for anything that is not one, to the last field."""
    try:
        request = dict(fields.parse_request(body))
        kind = fields.text(request, "type")
        if kind not in _READERS:
            raise InvalidRequest(f"unknown type {kind[:80]!r}")
        del request["type"]
        values = fields.read(request, _READERS[kind])
        return _MAKERS[kind](**values)
    except InvalidRequest as error:
        raise InvalidRequest(f"not a command: {error}") from None


def _namespace(request: fields.Request, name: str) -> str:
    return check_namespace(fields.text(request, name))


def _choice(request: fields.Request, name: str, *, choices: tuple[str, ...]) -> str:
    fields.text(request, name)
    chosen = fields.optional_choice(request, name, choices)
    assert chosen is not None, "it was a text"
    return chosen


def _token_ids(request: fields.Request, name: str) -> list[int]:
    ids: list[int] = fields.items(request, name)
    # By sets, in C: a prompt has thousands.
    if set(map(type, ids)) - {int}:
        raise InvalidRequest(f"{name!r} is a list of whole numbers")
    if ids and not (min(ids) >= 0 and max(ids) <= MAX_TOKEN_ID):
        raise InvalidRequest(f"{name!r} lie between 0 and {MAX_TOKEN_ID}")
    return ids


def _unless_null(reader: fields.Reader) -> fields.Reader:
    def read(request: fields.Request, name: str) -> object:
        return None if request.get(name) is None else reader(request, name)

    return read


def _keys(request: fields.Request, name: str) -> tuple[str, ...]:
    keys = fields.texts(request, name)
    for key in keys:
        if not 0 < len(key) <= MAX_KEY_LEN:
            raise InvalidRequest(
                f"{name!r} has a key of {len(key)} characters, 1 to {MAX_KEY_LEN} are taken"
            )
    return keys


def _segments(request: fields.Request, name: str) -> tuple[PromptSegment, ...]:
    pieces = map(fields.require_object, fields.items(request, name))
    return tuple(PromptSegment(**fields.read(piece, _SEGMENT)) for piece in pieces)


def _chunks(request: fields.Request, name: str) -> tuple[PromptSegment, ...]:
    """Segments of which each is a chunk, one or more."""
    pieces = _segments(request, name)
    if not pieces or any(piece.key is None for piece in pieces):
        raise InvalidRequest(f"{name!r} is a list of 1 chunk or more, each with its key")
    return pieces


def _options(request: fields.Request, name: str, *, kind: type[Options]) -> Options:
    """The record `kind` of an object, whose values the record itself checks."""
    record = fields.require_object(request.get(name))
    names = [item.name for item in fields_of(kind)]
    fields.refuse_unknown(record, names)
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
    }
    return kind(**values)


_TEXT_ID = partial(fields.text, max_len=MAX_REQUEST_ID_LEN)
_SEGMENT: dict[str, fields.Reader] = {
    "token_ids": _token_ids,
    "key": partial(fields.optional_text, max_len=MAX_KEY_LEN),
    "persistent": fields.flag,
    "behind": partial(fields.optional_text, max_len=MAX_KEY_LEN),
    "in_prompt": partial(fields.flag, default=True),
}
_CHUNK: dict[str, fields.Reader] = {"namespace": _namespace, "segments": _chunks}
_READERS: dict[str, Mapping[str, fields.Reader]] = {
    "Generate": {
        "request_id": _TEXT_ID,
        "reply_to": partial(fields.text, max_len=_MAX_ADDRESS_LEN),
        "namespace": _namespace,
        "segments": _segments,
        "max_tokens": partial(fields.whole_number, low=1, high=fields.MAX_INT32),
        "mode": partial(_choice, choices=MODES),
        "link_tokens": _unless_null(partial(fields.whole_number, low=0, high=fields.MAX_INT32)),
        "recompute_percent": _unless_null(fields.number),
        "sampling": partial(_options, kind=SamplingOptions),
        "stop_words": fields.texts,
        "answering": partial(_options, kind=AnswerOptions),
    },
    "Compile": _CHUNK,
    "Warm": {**_CHUNK, "tier": partial(_choice, choices=WARM_TIERS)},
    "Rank": _CHUNK,
    "Drop": {"keys": _keys},
    "Find": {"keys": _keys},
    "Cancel": {"request_id": _TEXT_ID},
    "Probe": {},
}
_MAKERS: dict[str, Callable[..., Command]] = {
    kind.__name__: kind for kind in (Generate, Compile, Warm, Rank, Drop, Find, Cancel, Probe)
}

"""The format that a request wants of its answers: read and checked, not compiled."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from legokv.errors import InvalidRequest

MAX_FORMAT_BYTES = 1 << 17
MAX_CHOICES = 1024
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_KEYS = {
    "text": (),
    "json_object": (),
    "json_schema": ("json_schema",),
    "regex": ("regex",),
    "choice": ("choice",),
}
_SCHEMA_KEYS = ("name", "schema", "strict", "description")


@dataclass(frozen=True)
class AnswerFormat:
    """What an answer is to be: JSON that `source`, a schema, allows; or what a regex matches whole;
    or one of the texts of a JSON list. `name` is what a sentence calls it.
    """

    kind: Literal["json_schema", "regex", "choice"]
    source: str
    name: str


def format_text(value: str | Mapping[str, Any] | None) -> str | None:
    """A format as JSON, from JSON or the object; InvalidRequest for what is neither."""
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"response_format is no JSON: {error}") from None


def read_format(text: str | None) -> AnswerFormat | None:
    """The format in JSON of OpenAI's shape, or ours of "regex" and "choice"; None for any text.

    InvalidRequest says what is wrong with it.
    """
    if text is None:
        return None
    record = _object(_parsed(text), "response_format")
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        kinds = ", ".join(_KEYS)
        raise InvalidRequest(f"response_format's type is one of {kinds}, not {_cut(kind)}")
    _refuse_unknown(record, ("type", *_KEYS[kind]), f"response_format of type {kind}")
    for key in _KEYS[kind]:
        if key not in record:
            raise InvalidRequest(f"response_format of type {kind} has no {key}")
    if kind == "text":
        return None
    if kind == "json_object":
        return AnswerFormat("json_schema", '{"type":"object"}', "JSON object")
    if kind == "json_schema":
        return AnswerFormat("json_schema", _schema(record["json_schema"]), "JSON schema")
    if kind == "regex":
        return AnswerFormat("regex", _text(record["regex"], "regex"), "regex")
    return AnswerFormat("choice", _choices(record["choice"]), "choice")


def _parsed(text: str) -> Any:
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_FORMAT_BYTES:
        raise InvalidRequest(
            f"response_format has {num_bytes} bytes, at most {MAX_FORMAT_BYTES} are taken"
        )
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise InvalidRequest("response_format is nested too deep") from None
    except ValueError as error:
        raise InvalidRequest(f"response_format is not JSON: {error}") from None


def _no_number(constant: str) -> float:
    raise InvalidRequest(f"response_format is not JSON: {constant} is no number there")


def _schema(value: object) -> str:
    record = _object(value, "json_schema")
    _refuse_unknown(record, _SCHEMA_KEYS, "json_schema")
    name = record.get("name", "schema")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"json_schema's name is 1 to 64 letters, digits, _ and -, not {_cut(name)}"
        )
    if not isinstance(record.get("strict"), bool | None):
        raise InvalidRequest(f"json_schema's strict is true or false, not {_cut(record['strict'])}")
    if not isinstance(record.get("description"), str | None):
        raise InvalidRequest("json_schema's description is a text")
    schema = _object(record.get("schema"), "json_schema's schema")
    # With escapes: half a surrogate pair is no UTF-8.
    return json.dumps(schema)


def _choices(value: object) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InvalidRequest(f"choice is a list of 1 text or more, not {_cut(value)}")
    if len(value) > MAX_CHOICES:
        raise InvalidRequest(f"choice has {len(value)} texts, at most {MAX_CHOICES} are taken")
    for text in value:
        if not _text(text, "a text of choice"):
            raise InvalidRequest("a text of choice is empty")
    return json.dumps(value)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is a text, not {_cut(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} is not UTF-8: half a surrogate pair at character {error.start}"
        ) from None
    return value


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} is a JSON object, not {_cut(value)}")
    return value


def _refuse_unknown(record: Mapping[str, Any], names: Sequence[str], name: str) -> None:
    for key in record:
        if key not in names:
            raise InvalidRequest(f"{name} has {_cut(key)}; known are {', '.join(names)}")


def _cut(value: object) -> str:
    """A value as JSON has it, but a text as a sentence has it; its beginning."""
    return (repr(value) if isinstance(value, str) else json.dumps(value))[:80]

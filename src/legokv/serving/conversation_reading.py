"""Reads `messages` and `tools`, JSON as OpenAI's clients send it, with bounds for all in it."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from legokv.documents.document import MAX_ID_LEN
from legokv.errors import InvalidRequest, kind_of, shown
from legokv.serving import fields
from legokv.text.conversation import ROLES, Conversation, DocumentPart, Turn

MAX_MESSAGES = 1024
MAX_PARTS = 4096
"""Most parts of one message."""
MAX_TOOLS = 128
MAX_TOOL_CALLS = 128
"""Most calls of one message."""
MAX_TOOLS_BYTES = 2**18
MAX_DEPTH = 16
"""Most objects and lists inside one another, in a tool or a call."""
MAX_VALUES = 4096
"""Most names and values in all tools, or in one message's calls."""
MAX_NAME_LEN = 64
MAX_CALL_ID_LEN = 64
_CALL_ID_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
# Names and quotes of JSON beside the texts: a text's own letters take up to six bytes.
_JSON_BYTES = 2**20


def max_messages_bytes(max_text_bytes: int) -> int:
    """Longest `messages` for so many bytes of texts in them."""
    return 6 * max_text_bytes + _JSON_BYTES


def read_conversation(messages: str, tools: str | None, max_text_bytes: int) -> Conversation:
    """The conversation in a request's fields; InvalidRequest says what is wrong, and where.

    All texts together have at most `max_text_bytes` in UTF-8.
    """
    listed = _list(messages, "messages", max_messages_bytes(max_text_bytes))
    if not listed:
        raise InvalidRequest("'messages' is an empty list: it has one message or more")
    if len(listed) > MAX_MESSAGES:
        raise InvalidRequest(
            f"'messages' has {len(listed)} messages, at most {MAX_MESSAGES} are taken"
        )
    turns = tuple(_turn(item, f"message {n} of {len(listed)}") for n, item in enumerate(listed, 1))
    _check_texts(turns, max_text_bytes)
    return Conversation(turns, _tools(tools))


def _check_texts(turns: Sequence[Turn], max_text_bytes: int) -> None:
    texts = [part for turn in turns for part in (*turn.parts, turn.reasoning or "")]
    num_bytes = sum(len(text.encode()) for text in texts if isinstance(text, str))
    if num_bytes > max_text_bytes:
        raise InvalidRequest(
            f"the messages' texts have {num_bytes} bytes together, at most {max_text_bytes} are "
            "taken"
        )
    if not (turns[-1].parts or turns[-1].tool_calls):
        raise InvalidRequest(f"message {len(turns)} of {len(turns)} is empty: nothing is asked")


def _list(text: str, name: str, max_bytes: int) -> list[Any]:
    """The list in a JSON text; fields.parse_request reads it, inside an object."""
    body = text.encode()
    if len(body) > max_bytes:
        raise InvalidRequest(f"{name!r} has {len(body)} bytes, at most {max_bytes} are taken")
    try:
        value = fields.parse_request(b'{"list": ' + body + b"}")["list"]
    except InvalidRequest as error:
        raise InvalidRequest(f"{name!r}: {error}") from None
    if not isinstance(value, list):
        raise InvalidRequest(f"{name!r} is a JSON array, not {kind_of(value)}")
    return value


def _turn(item: object, where: str) -> Turn:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} is an object with 'role' and 'content', not {shown(item)}")
    try:
        values = fields.read(item, _MESSAGE)
        return _made(values)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from None


def _made(values: Mapping[str, Any]) -> Turn:
    role, calls = values["role"], values["tool_calls"]
    if calls and role != "assistant":
        raise InvalidRequest(f"'tool_calls' belong to the role assistant, not to {role}")
    if values["tool_call_id"] is not None and role != "tool":
        raise InvalidRequest(f"'tool_call_id' belongs to the role tool, not to {role}")
    parts = values["content"]
    if parts is None:
        if not calls:
            raise InvalidRequest("'content' is missing: a text, or a list of parts")
        parts = ()
    return Turn(
        role, parts, values["name"], calls, values["tool_call_id"], values["reasoning_content"]
    )


def _role(message: fields.Request, name: str) -> str:
    role = fields.text(message, name)
    if role not in ROLES:
        raise InvalidRequest(f"{name!r} is one of {', '.join(ROLES)}, not {role[:80]!r}")
    return role


def _content(message: fields.Request, name: str) -> tuple[str | DocumentPart, ...] | None:
    """Texts and documents in order, without the blanks at both ends; None where there is none."""
    value = message.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        parts: list[str | DocumentPart] = [fields.text(message, name)]
    elif isinstance(value, list) and len(value) > MAX_PARTS:
        raise InvalidRequest(f"{name!r} has {len(value)} parts, at most {MAX_PARTS} are taken")
    elif isinstance(value, list):
        parts = [_part(item, f"part {n} of {len(value)}") for n, item in enumerate(value, 1)]
    else:
        raise InvalidRequest(f"{name!r} is a text or a list of parts, not {kind_of(value)}")
    return tuple(part for part in _stripped(parts) if part)


def _stripped(parts: list[str | DocumentPart]) -> list[str | DocumentPart]:
    joined: list[str | DocumentPart] = []
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        run = list(group)
        joined += ["".join(map(str, run))] if is_text else run
    if joined and isinstance(joined[0], str):
        joined[0] = joined[0].lstrip()
    if joined and isinstance(joined[-1], str):
        joined[-1] = joined[-1].rstrip()
    return joined


def _part(item: object, where: str) -> str | DocumentPart:
    part = item if isinstance(item, dict) else {}
    kind = part.get("type")
    try:
        if kind == "text":
            text: str = fields.read(part, _TEXT_PART)["text"]
            return text
        if kind == "document":
            return DocumentPart(fields.read(part, _DOCUMENT_PART)["id"])
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from None
    kind_text = f"an object of type {shown(kind)}" if isinstance(item, dict) else shown(item)
    raise InvalidRequest(
        f'{where} is {{"type": "text", "text": …}} or {{"type": "document", "id": …}}, not '
        f"{kind_text}"
    )


def _tools(text: str | None) -> tuple[Mapping[str, Any], ...]:
    tools = [] if text is None else _list(text, "tools", MAX_TOOLS_BYTES)
    return _objects({"tools": tools}, "tools", most=MAX_TOOLS)


def _objects(request: fields.Request, name: str, *, most: int) -> tuple[Mapping[str, Any], ...]:
    items = fields.items(request, name) if request.get(name) is not None else []
    if len(items) > most:
        raise InvalidRequest(f"{name!r} has {len(items)} objects, at most {most} are taken")
    for item in items:
        if not isinstance(item, dict):
            raise InvalidRequest(f"{name!r} is a list of objects, one is {kind_of(item)}")
    num_values = _num_values(items, name, MAX_DEPTH)
    if num_values > MAX_VALUES:
        raise InvalidRequest(
            f"{name!r} has {num_values} names and values, at most {MAX_VALUES} are taken"
        )
    return tuple(items)


def _num_values(value: Any, name: str, depth: int) -> int:
    """How many names and values are in it; InvalidRequest for what is too deep, or no text."""
    if isinstance(value, str):
        fields.text({name: value}, name)
    if not isinstance(value, dict | list):
        return 1
    if not depth:
        raise InvalidRequest(
            f"{name!r} has more than {MAX_DEPTH} objects and lists inside one another"
        )
    inside = (*value, *value.values()) if isinstance(value, dict) else value
    return 1 + sum(_num_values(item, name, depth - 1) for item in inside)


def _tool_calls(message: fields.Request, name: str) -> tuple[Mapping[str, Any], ...]:
    """Calls with their arguments as an object: clients send its JSON, templates read it itself."""
    calls = _objects(message, name, most=MAX_TOOL_CALLS)
    return tuple(map(_call, calls))


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    _call_id(call, "id")
    function = call.get("function")
    if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        raise InvalidRequest("a call in 'tool_calls' has a 'function' with its 'name'")
    return {**call, "function": {**function, "arguments": _arguments(function)}}


def _arguments(function: Mapping[str, Any]) -> Any:
    value = function.get("arguments", {})
    if not isinstance(value, str):
        return value
    try:
        made = fields.parse_request(value.encode())
    except InvalidRequest:
        return value
    _num_values(made, "arguments", MAX_DEPTH)
    return made


def _call_id(message: fields.Request, name: str) -> str | None:
    value = fields.optional_text(message, name, max_len=MAX_CALL_ID_LEN)
    if value is not None and not (value and set(value) <= _CALL_ID_LETTERS):
        raise InvalidRequest(
            f"{name!r} is of letters, digits, dashes and underscores, not {value[:80]!r}"
        )
    return value


_MESSAGE: dict[str, fields.Reader] = {
    "role": _role,
    "content": _content,
    "name": partial(fields.optional_text, max_len=MAX_NAME_LEN),
    "tool_calls": _tool_calls,
    "tool_call_id": _call_id,
    "reasoning_content": fields.optional_text,
}
_TEXT_PART: dict[str, fields.Reader] = {"type": fields.text, "text": fields.text}
_DOCUMENT_PART: dict[str, fields.Reader] = {
    "type": fields.text,
    "id": partial(fields.text, max_len=MAX_ID_LEN),
}

"""Messages in OpenAI's shape become those of `generate`: documents by id, tool calls as objects."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from legokv.errors import ApiRefused, kind_of, shown
from legokv.serving.body_bounds import check_json
from legokv.serving.gateway.accounts import Account
from legokv.serving.gateway.extract import text_of
from legokv.serving.gateway.incoming import is_begun_object, whole_members
from legokv.serving.gateway.library import shown_name
from legokv.serving.gateway.world import World

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")
PARTS = (*TEXT_PARTS, "refusal", "file", "document")
"""Types of a message's parts."""
SHOWN_CALLS = 8
"""The last ones that an error names."""
Message = dict[str, Any]
Part = dict[str, Any]


def joined(parts: list[Part]) -> str | list[Part]:
    """A content's one text if all its parts are texts, else the parts."""
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def num_documents(content: Any) -> int:
    """How many files and texts of documents are in a message's content, or in all messages."""
    if isinstance(content, list):
        return sum(map(num_documents, content))
    if not isinstance(content, Mapping):
        return 0
    is_one = content.get("type") in ("file", "document")
    return is_one + num_documents(content.get("content"))


class Turns:
    """Reads one chat's messages for one account, and counts its documents."""

    def __init__(self, world: World, account: Account) -> None:
        self._world = world
        self._account = account
        self.document_ids: list[str] = []

    async def of(self, messages: Sequence[Any], documents: Sequence[Any] = ()) -> list[Message]:
        """The messages; `documents` come first in the first one of a user."""
        if not messages:
            raise ApiRefused("'messages' is empty: there is nothing to answer", param="messages")
        self.check_number(len(documents) + num_documents(messages))
        turns = [await self._turn(place, message) for place, message in enumerate(messages)]
        check_call_ids(turns)
        parts = [await self._inline(place, item) for place, item in enumerate(documents)]
        if parts:
            _put_first(turns, parts)
        return turns

    async def _turn(self, place: int, message: Any) -> Message:
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise ApiRefused(
                f"{where} is an object with a role and a content, not {kind_of(message)}",
                param=where,
            )
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise ApiRefused(
                f"{where}.role is one of {', '.join(ROLES)}, not {shown(role)}",
                param=f"{where}.role",
            )
        calls = message.get("tool_calls")
        content = await self._content(f"{where}.content", message.get("content"), bool(calls))
        turn: Message = {"role": ROLES[role], "content": content}
        if calls:
            turn["tool_calls"] = _tool_calls(f"{where}.tool_calls", calls)
        if message.get("tool_call_id") is not None:
            turn["tool_call_id"] = _text(f"{where}.tool_call_id", message["tool_call_id"])
        if role == "tool" and isinstance(message.get("name"), str):
            turn["name"] = message["name"]
        return turn

    async def _content(self, where: str, content: Any, may_be_none: bool) -> Any:
        if content is None and may_be_none:
            return ""
        if isinstance(content, str):
            return _text(where, content)
        if not isinstance(content, list) or not content:
            raise ApiRefused(
                f"{where} is a text or a list of parts, {instead(content)}", param=where
            )
        return joined(
            [await self.part(f"{where}[{place}]", part) for place, part in enumerate(content)]
        )

    async def part(self, where: str, part: Any) -> Part:
        """One part of a message: text, or a document."""
        if not isinstance(part, dict):
            raise ApiRefused(f"{where} is an object with a type, not {kind_of(part)}", param=where)
        kind = part.get("type")
        if kind in TEXT_PARTS:
            return {"type": "text", "text": _text(f"{where}.text", part.get("text"))}
        if kind == "refusal":
            return {"type": "text", "text": _text(f"{where}.refusal", part.get("refusal"))}
        if kind == "file" and isinstance(part.get("file"), dict):
            return await self._file(f"{where}.file", part["file"])
        if kind == "document" and isinstance(part.get("id"), str):
            return await self.document(part["id"])
        if kind in ("file", "document"):
            want = "'file', an object with a 'file_id'" if kind == "file" else "'id', a file's id"
            raise ApiRefused(f"{where} of type {kind!r} has {want}", param=where)
        raise ApiRefused(
            f"{where} is of type {shown(kind)}: parts are 'text' and 'file' here",
            param=where,
        )

    async def document(self, file_id: str) -> Part:
        """A file's part; it is compiled when this returns."""
        document_id = await self._world.library.ready(self._account.namespace(), file_id)
        return self._named(document_id)

    async def text_document(
        self, where: str, text: str, name: str, ttl_seconds: float | None = None
    ) -> Part:
        """A part for a text that comes with the chat itself."""
        if not text.strip():
            raise ApiRefused(f"{where} is empty: there is nothing but blanks in it", param=where)
        document_id = await self._world.library.of_text(self._account, text, name, ttl_seconds)
        return self._named(document_id)

    def check_number(self, number: int) -> None:
        """ApiRefused for more files and texts than a chat may have, before any is registered."""
        most = self._world.settings.max_documents
        if number > most:
            raise ApiRefused(f"{number} files are in the messages, at most {most} are taken")

    def _named(self, document_id: str) -> Part:
        self.document_ids.append(document_id)
        return {"type": "document", "id": document_id}

    async def _file(self, where: str, file: Part) -> Part:
        if file.get("file_id") is not None:
            return await self.document(_text(f"{where}.file_id", file["file_id"]))
        data = file.get("file_data")
        if data is None:
            raise ApiRefused(f"{where} has neither 'file_id' nor 'file_data'", param=where)
        name = shown_name(str(file.get("filename") or "file"))
        media_type, content = decoded(f"{where}.file_data", data)
        text, _ = await text_of(name if "." in name else f"{name}.txt", media_type, content)
        return await self.text_document(f"{where}.file_data", text, name)

    async def _inline(self, place: int, item: Any) -> Part:
        where = f"documents[{place}]"
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise ApiRefused(
                f"{where} is an object with a 'text', and perhaps a 'title'", param=where
            )
        title = item.get("title") or ""
        text = titled(_text(f"{where}.title", title), item["text"])
        return await self.text_document(f"{where}.text", text, title)


def places_named(places: Sequence[str]) -> dict[str, str]:
    """What the client calls each message of `generate`, by how errors of models name it."""
    whole = {f"message {n} of {len(places)}": place for n, place in enumerate(places, 1)}
    return whole | {f"message {n}": place for n, place in enumerate(places, 1)}


def check_call_ids(turns: Sequence[Message]) -> None:
    """ApiRefused for a tool's result that names a call which nothing before it has."""
    calls: dict[str, None] = {}  # in their order
    for turn in turns:
        asked = turn.get("tool_call_id")
        if turn["role"] == "tool" and asked is not None and asked not in calls:
            last = list(calls)[-SHOWN_CALLS:]
            listing = ", ".join(repr(call[:80]) for call in last) or "none"
            if len(calls) > len(last):
                listing = f"{len(calls)}, the last {len(last)} of them {listing}"
            raise ApiRefused(
                f"the messages have the result of a call {asked[:80]!r} that no message before it "
                f"makes; calls before it: {listing}",
                param="messages",
            )
        calls |= dict.fromkeys(call["id"] for call in turn.get("tool_calls", ()))


def titled(title: str, text: str, context: str = "") -> str:
    """A document's text with what it is called, and where it comes from, before it."""
    return "\n".join(part for part in (title.strip(), context.strip(), text) if part)


def decoded(where: str, data: Any) -> tuple[str, bytes]:
    """Media type and bytes of base64 text, or of a `data:` address of it."""
    text, media_type = _text(where, data), ""
    if text.startswith("data:"):
        head, _, text = text.removeprefix("data:").partition(",")
        media_type = head.partition(";")[0]
    try:
        return media_type, base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiRefused(f"{where} is not base64: {error}", param=where) from None


def _put_first(turns: list[Message], parts: list[Part]) -> None:
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is None:
        raise ApiRefused("'documents' need a message of role 'user'", param="documents")
    content = first["content"]
    rest = [{"type": "text", "text": content}] if isinstance(content, str) else content
    first["content"] = [*parts, *rest]


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ApiRefused(f"{where} is a text, not {kind_of(value)}", param=where)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ApiRefused(
            f"{where} is not UTF-8: half a surrogate pair at character {error.start}", param=where
        ) from None
    return value


def instead(content: Any) -> str:
    """What stands where a text or a list of parts must, in words."""
    return "not an empty one" if content == [] else f"not {kind_of(content)}"


def _tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise ApiRefused(f"{where} is a list, not {kind_of(calls)}", param=where)
    return [_tool_call(f"{where}[{place}]", call) for place, call in enumerate(calls)]


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiRefused(f"{where} is an object with a function's name and arguments", param=where)
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        check_json(_text(f"{where}.function.arguments", arguments).encode())
        arguments = _value_of(f"{where}.function.arguments", arguments or "{}")
    return {
        "id": _text(f"{where}.id", call.get("id", "")),
        "type": "function",
        "function": {"name": _text(where, function["name"]), "arguments": arguments},
    }


def _value_of(where: str, arguments: str) -> Any:
    """What the arguments say; of those that an answer's end cut, the members that are whole."""
    try:
        return json.loads(arguments)
    except ValueError:
        if is_begun_object(arguments):
            return whole_members(arguments)
    raise ApiRefused(
        f"{where} is neither JSON nor the beginning of an object that an answer's end cut: send "
        "what the answer had",
        param=where,
    )

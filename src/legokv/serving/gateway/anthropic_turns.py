"""Anthropic's messages, made of blocks, as the turns that `generate` takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from legokv.errors import ApiRefused, kind_of, shown
from legokv.serving.gateway.extract import text_of
from legokv.serving.gateway.turns import (
    Message,
    Part,
    Turns,
    check_call_ids,
    decoded,
    instead,
    joined,
    num_documents,
    titled,
)

ROLES = ("user", "assistant", "system")
BLOCKS = ("text", "document", "tool_use", "tool_result")
_TTL_SECONDS = {"5m": 300.0, "1h": 3600.0}
_TEXT_SOURCES = ("text/plain", "text/markdown", "text/html", "application/pdf", "")


class BlockTurns:
    """Reads messages made of Anthropic's blocks."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.places: list[str] = []
        """What of the body each message is made of."""

    @property
    def document_ids(self) -> list[str]:
        return self._turns.document_ids

    async def of(self, system: Any, messages: Sequence[Any]) -> list[Message]:
        self._turns.check_number(num_documents(system) + num_documents(messages))
        made: list[Message] = []
        if system:
            made.append({"role": "system", "content": await self._parts("system", system)})
            self.places.append("system")
        for place, message in enumerate(messages):
            where = f"messages[{place}]"
            if not isinstance(message, Mapping):
                raise ApiRefused(
                    f"{where} is an object with a role and a content, not {kind_of(message)}",
                    param=where,
                )
            role = message.get("role")
            if not isinstance(role, str) or role not in ROLES:
                raise ApiRefused(
                    f"{where}.role is one of {', '.join(ROLES)}, not {shown(role)}", param=where
                )
            made += await self._turn(where, message)
            self.places += [where] * (len(made) - len(self.places))
        if not messages:
            raise ApiRefused("'messages' is empty: there is nothing to answer", param="messages")
        check_call_ids(made)
        return made

    async def _turn(self, where: str, message: Mapping[str, Any]) -> list[Message]:
        content, role = message.get("content"), message["role"]
        if not isinstance(content, str | list):
            raise ApiRefused(
                f"{where}.content is a text or a list of blocks, not {kind_of(content)}",
                param=where,
            )
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        results, calls, texts = [], [], []
        for place, block in enumerate(blocks):
            here = f"{where}.content[{place}]"
            kind = block.get("type") if isinstance(block, Mapping) else None
            if kind == "tool_result" and role == "user":
                results.append(await self._result(here, block))
            elif kind == "tool_use" and role == "assistant":
                calls.append(_call(here, block))
            elif kind in ("thinking", "redacted_thinking") and role == "assistant":
                continue
            else:
                texts.append(block)
        turn: Message = {"role": role}
        if texts:
            turn["content"] = await self._parts(f"{where}.content", texts)
        if calls:
            turn["tool_calls"] = calls
            turn.setdefault("content", "")
        return [*results, turn] if "content" in turn else results

    async def _result(self, where: str, block: Mapping[str, Any]) -> Message:
        content = block.get("content") or ""
        parts = await self._parts(where, content) if content else ""
        call_id = _id_in(where, block, "tool_use_id")
        if block.get("is_error") is True:
            parts = _as_error(parts)
        return {"role": "tool", "content": parts, "tool_call_id": call_id}

    async def _parts(self, where: str, content: Any) -> Any:
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            raise ApiRefused(
                f"{where} is a text or a list of blocks, {instead(content)}", param=where
            )
        return joined([await self._part(f"{where}[{n}]", block) for n, block in enumerate(content)])

    async def _part(self, where: str, block: Any) -> Part:
        if not isinstance(block, Mapping):
            raise ApiRefused(f"{where} is an object with a type, not {kind_of(block)}", param=where)
        kind = block.get("type")
        if kind == "document":
            return await self._document(where, block)
        if kind == "text":
            return await self._turns.part(where, {"type": "text", "text": block.get("text")})
        raise ApiRefused(
            f"{where} is of type {shown(kind)}: blocks are text, document, tool_use and "
            "tool_result here",
            param=where,
        )

    async def _document(self, where: str, block: Mapping[str, Any]) -> Part:
        citations = block.get("citations") or {}
        if isinstance(citations, Mapping) and citations.get("enabled"):
            raise ApiRefused(
                f"{where}.citations: this server does not know which words of an answer come from "
                "where, and invents none: leave citations out",
                param=f"{where}.citations",
            )
        source = block.get("source")
        source = source if isinstance(source, Mapping) else {}
        kind = source.get("type")
        if kind == "file":
            return await self._turns.document(_text_in(f"{where}.source", source, "file_id"))
        text = await self._text(f"{where}.source", kind, source)
        title, context = (
            _text_in(where, block, name) if block.get(name) is not None else ""
            for name in ("title", "context")
        )
        ttl = _ttl_seconds(where, block.get("cache_control"))
        whole = titled(title, text, context)
        return await self._turns.text_document(f"{where}.source", whole, title, ttl)

    async def _text(self, where: str, kind: Any, source: Mapping[str, Any]) -> str:
        if kind == "text" and isinstance(source.get("data"), str):
            return str(source["data"])
        if kind == "base64" and source.get("media_type", "") in _TEXT_SOURCES:
            media_type = str(source.get("media_type", ""))
            _, data = decoded(f"{where}.data", source.get("data"))
            text, _ = await text_of("document", media_type, data)
            return text
        if kind == "content":
            return await self._content_text(where, source.get("content"))
        raise ApiRefused(
            f"{where} is of type {shown(kind)}: text, base64, content and file are taken",
            param=where,
        )

    async def _content_text(self, where: str, content: Any) -> str:
        text = await self._parts(f"{where}.content", content)
        if not isinstance(text, str):
            raise ApiRefused(f"{where}.content has documents inside a document", param=where)
        return text


def _ttl_seconds(where: str, control: Any) -> float | None:
    if control is None:
        return None
    ttl = control.get("ttl", "5m") if isinstance(control, Mapping) else None
    if not isinstance(ttl, str) or ttl not in _TTL_SECONDS:
        raise ApiRefused(f"{where}.cache_control has a ttl of {' or '.join(_TTL_SECONDS)}")
    return _TTL_SECONDS[ttl]


def _call(where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(block.get("name"), str) or not isinstance(block.get("input"), Mapping):
        raise ApiRefused(f"{where} is a call with a name and an input", param=where)
    function = {"name": block["name"], "arguments": block["input"]}
    return {"id": _id_in(where, block, "id"), "type": "function", "function": function}


def _id_in(where: str, block: Mapping[str, Any], name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str) or not value:
        raise ApiRefused(f"{where}.{name} is a text: the id of a call", param=where)
    return value


def _text_in(where: str, block: Mapping[str, Any], name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise ApiRefused(f"{where}.{name} is a text, not {kind_of(value)}", param=where)
    return value


def _as_error(parts: Any) -> Any:
    """A tool's result that is an error, said so before it: templates have no place for that."""
    if isinstance(parts, str):
        return f"Error: {parts}" if parts else "Error"
    return [{"type": "text", "text": "Error: "}, *parts]

"""`/v1/messages`: Anthropic's requests over the same code, and answers in its shapes and events."""

import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from legokv.errors import ApiRefused, LegokvError, shown
from legokv.serving import fields as readers
from legokv.serving.fields import Reader
from legokv.serving.gateway import fields
from legokv.serving.gateway.accounts import Account
from legokv.serving.gateway.anthropic_turns import BlockTurns
from legokv.serving.gateway.bodies import json_body, read_fields, while_client_stays
from legokv.serving.gateway.chat import (
    Asked,
    Begun,
    answers_for,
    begin,
    only_reply,
    required_model,
)
from legokv.serving.gateway.incoming import is_object, whole_members
from legokv.serving.gateway.models import Values, json_text
from legokv.serving.gateway.refusals import anthropic_error
from legokv.serving.gateway.replies import Answer
from legokv.serving.gateway.streams import EventStream, event
from legokv.serving.gateway.tool_calls import Tools, tools_of
from legokv.serving.gateway.tool_reading import Arguments, Item, ToolCall
from legokv.serving.gateway.turns import Turns, places_named
from legokv.serving.gateway.world import World

# Lists that `BlockTurns` and `_tool` read.
messages, tools = fields.items_reader(), fields.items_reader()


def tool_choice(request: readers.Request, name: str) -> dict[str, Any]:
    """An object with a type of `CHOICES`."""
    return fields.json_object(request, name)


FIELDS: dict[str, Reader] = {
    "model": readers.text,
    "messages": messages,
    "max_tokens": partial(readers.whole_number, low=1, high=readers.MAX_INT32),
    "system": fields.text_or_parts,
    "temperature": fields.SAMPLING["temperature"],
    "top_p": fields.SAMPLING["top_p"],
    "top_k": partial(readers.whole_number, low=0, high=readers.MAX_INT32),
    "stop_sequences": fields.stops,
    "stream": readers.flag,
    "tools": tools,
    "tool_choice": tool_choice,
    "output_config": fields.json_object,
    "link": fields.link,
    "chat_template_kwargs": fields.json_object,
}
# `messages.count_tokens` takes those of a prompt.
COUNTED = {name: FIELDS[name] for name in FIELDS if name not in ("max_tokens", "stream")}
_WITHOUT_EFFECT = ("metadata", "service_tier", "cache_control", "inference_geo", "diagnostics")
_ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "thinking": ({"type": "disabled"},),
    "speed": ("standard",),
    "container": (),
    "mcp_servers": ([],),
    "context_management": (),
    "prefill": (),
}
OTHERS = (*_WITHOUT_EFFECT, *_ASKS_FOR_NOTHING)
NAMES = {
    "stop_words": "stop_sequences",
    "response_format": "output_config.format",
    "json_schema's schema": "output_config.format.schema",
}
"""What clients call the fields of `generate` that have other names there."""
CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": None}
"""OpenAI's words for them; None names a tool."""
_STOPS = {"stop": "end_turn", "length": "max_tokens", "timeout": "max_tokens"}


class AnthropicChats:
    """The endpoint. `account` is who asks."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def message(self, request: Request, account: Account) -> Response:
        """Answer a conversation."""
        world = self._world
        body = await json_body(request, world.settings.request_bytes)
        values = read_fields(body, FIELDS, _WITHOUT_EFFECT, _ASKS_FOR_NOTHING)
        model = required_model(values)
        world.check_model(model)
        if "max_tokens" not in values:
            raise ApiRefused("'max_tokens' is missing", param="max_tokens")
        offered = tools_of(_tools_in_openais_shape(values), world.tool_form)
        ask = self._asking(account, values, offered, _for_generate(values, offered))
        begun = await while_client_stays(request, begin(world, request, account, ask))
        (answer,) = answers_for(world, {}, offered)
        request_id = request.state.request_id
        if values.get("stream"):

            def last_word(error: LegokvError) -> bytes:
                return event(anthropic_error(error, request_id), "error")

            return EventStream(_events(begun, answer, model), last_word, request.state.line)
        reply = await while_client_stays(request, only_reply(begun))
        return JSONResponse(_whole(reply, answer, model))

    async def count_tokens(self, request: Request, account: Account) -> Response:
        """How many tokens a message's prompt has; its documents are registered as in a message."""
        world = self._world
        body = await json_body(request, world.settings.request_bytes)
        values = read_fields(body, COUNTED, _WITHOUT_EFFECT, _ASKS_FOR_NOTHING)
        world.check_model(required_model(values))
        offered = tools_of(_tools_in_openais_shape(values), world.tool_form)
        chosen = {**_for_generate(values, offered), "count_only": True}
        ask = self._asking(account, values, offered, chosen)
        begun = await while_client_stays(request, begin(world, request, account, ask))
        reply = await while_client_stays(request, only_reply(begun))
        return JSONResponse({"input_tokens": reply["prompt_tokens"]})

    def _asking(
        self,
        account: Account,
        values: Mapping[str, Any],
        offered: Tools,
        chosen: Mapping[str, Any],
    ) -> Callable[[], Awaitable[Asked]]:
        names = fields.names_of(values, NAMES)
        if offered.forced:
            names["response_format"] = "tools"

        async def ask() -> Asked:
            turns = BlockTurns(Turns(self._world, account))
            messages = await turns.of(values.get("system"), values.get("messages", []))
            names.update(places_named(turns.places))
            text = json_text(messages)
            return Asked({**chosen, "messages": text}, turns.document_ids, names)

        return ask


def _tools_in_openais_shape(values: Mapping[str, Any]) -> dict[str, Any]:
    choice = values.get("tool_choice") or {"type": "auto"}
    if not isinstance(choice.get("type"), str) or choice["type"] not in CHOICES:
        raise ApiRefused(f"'tool_choice' is of type {', '.join(CHOICES)}", param="tool_choice")
    word = CHOICES[choice["type"]]
    named = {"type": "function", "function": {"name": choice.get("name")}}
    offered = [_tool(place, tool) for place, tool in enumerate(values.get("tools", []))]
    if not offered:
        return {}
    names = [tool["function"]["name"] for tool in offered]
    if word is None and choice.get("name") not in names:
        raise ApiRefused(
            f"'tool_choice' of type tool names one of the tools, {', '.join(names)[:200]}, not "
            f"{shown(choice.get('name'))}",
            param="tool_choice",
        )
    return {
        "tools": offered,
        "tool_choice": named if word is None else word,
        "parallel_tool_calls": not choice.get("disable_parallel_tool_use", False),
    }


def _tool(place: int, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type", "custom") != "custom":
        raise ApiRefused(f"tools[{place}] is no tool of the client's own", param="tools")
    name, schema = tool.get("name"), tool.get("input_schema")
    if not isinstance(name, str) or not name or not isinstance(schema, Mapping | None):
        raise ApiRefused(f"tools[{place}] has a name and an input_schema, an object", param="tools")
    function = {
        "name": name,
        "description": tool.get("description") or "",
        "parameters": schema,
    }
    return {"type": "function", "function": function}


def _for_generate(values: Mapping[str, Any], tools: Tools) -> dict[str, Any]:
    renamed = {
        name: values[name]
        for name in (
            *("max_tokens", "temperature", "top_p", "top_k", "stream", "link"),
            "chat_template_kwargs",
        )
        if name in values
    }
    chosen = fields.for_generate({**renamed, "stop": values.get("stop_sequences", ())})
    if tools.tools:
        chosen["tools"] = json_text(tools.tools)
    form = _output_form(values.get("output_config", {}))
    if form is not None or tools.forced:
        chosen["response_format"] = json_text(form or tools.response_format())
    return chosen


def _output_form(config: Mapping[str, Any]) -> dict[str, Any] | None:
    for name in config:
        if name != "format":
            raise ApiRefused(f"output_config.{name[:80]} is not offered", param="output_config")
    form = config.get("format")
    if form is None:
        return None
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        raise ApiRefused("output_config.format is of type json_schema", param="output_config")
    schema = {"name": "answer", "schema": form.get("schema")}
    return {"type": "json_schema", "json_schema": schema}


def _usage(values: Values) -> dict[str, Any]:
    """Anthropic's three counts of a prompt are apart: read, written, and neither."""
    written = values.get("compiled_tokens", 0)
    read = max(0, values.get("cached_tokens", 0) - written)
    return {
        "input_tokens": max(0, values["prompt_tokens"] - read - written),
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": values["generated_tokens"],
    }


def _stop_reason(values: Values, answer: Answer) -> str:
    if answer.num_calls and values["finish_reason"] == "stop":
        return "tool_use"
    return _STOPS.get(values["finish_reason"], "end_turn")


def _message(model: str) -> dict[str, Any]:
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _tool_use(call: ToolCall, arguments: str = "{}") -> dict[str, Any]:
    value = _input_of(arguments)
    return {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": value}


def _input_of(arguments: str) -> dict[str, Any]:
    """The arguments as an object; of those that break off, the members that are whole."""
    arguments = arguments or "{}"
    if not is_object(arguments):
        return whole_members(arguments)
    return dict(json.loads(arguments))


def _blocks_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """A whole answer's blocks: of text, and of calls with their arguments."""
    blocks: list[tuple[ToolCall | None, list[str]]] = []
    for item in items:
        call = item if isinstance(item, ToolCall) else None
        if call is not None or not blocks or isinstance(item, str) is not (blocks[-1][0] is None):
            blocks.append((call, []))
        if not isinstance(item, ToolCall):
            blocks[-1][1].append(item if isinstance(item, str) else item.text)
    return [
        {"type": "text", "text": "".join(texts)}
        if call is None
        else _tool_use(call, "".join(texts))
        for call, texts in blocks
    ]


def _whole(values: Values, answer: Answer, model: str) -> dict[str, Any]:
    blocks = _blocks_of(answer.split(values["text_output"], last=True))
    return {
        **_message(model),
        "content": blocks or [{"type": "text", "text": ""}],
        "stop_reason": _stop_reason(values, answer),
        "usage": _usage(values),
    }


class _Blocks:
    """The blocks of a stream: one of text while text comes, one for each call."""

    def __init__(self) -> None:
        self._number = -1
        self._open = ""

    def events(self, items: Sequence[Item]) -> list[bytes]:
        """What shows these."""
        made = []
        for item in items:
            if isinstance(item, Arguments):
                made.append(self._delta({"type": "input_json_delta", "partial_json": item.text}))
            elif isinstance(item, ToolCall):
                made += [*self.end(), self._start(_tool_use(item))]
            else:
                if self._open != "text":
                    made += [*self.end(), self._start({"type": "text", "text": ""})]
                made.append(self._delta({"type": "text_delta", "text": item}))
        return made

    def end(self) -> list[bytes]:
        """What ends the block that is open, if one is."""
        was, self._open = self._open, ""
        return [self._stop()] if was else []

    def _start(self, block: dict[str, Any]) -> bytes:
        self._number += 1
        self._open = block["type"]
        return _event("content_block_start", index=self._number, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._number, delta=delta)

    def _stop(self) -> bytes:
        return _event("content_block_stop", index=self._number)


def _event(kind: str, **members: Any) -> bytes:
    return event({"type": kind, **members}, kind)


async def _events(begun: Begun, answer: Answer, model: str) -> AsyncGenerator[bytes, None]:
    none = {"input_tokens": 0, "output_tokens": 0}
    yield _event("message_start", message={**_message(model), "usage": none})
    blocks = _Blocks()
    async with aclosing(begun.all()) as replies:
        async for values in replies:
            last = "finish_reason" in values
            text = "" if last else values["text_output"]
            made = blocks.events(answer.split(text, last=last))
            if last:
                made += blocks.end()
                delta = {"stop_reason": _stop_reason(values, answer), "stop_sequence": None}
                made.append(_event("message_delta", delta=delta, usage=_usage(values)))
                made.append(_event("message_stop"))
            if made:
                yield b"".join(made)

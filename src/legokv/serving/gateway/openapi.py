"""The paths in OpenAPI's form, and a page that shows them; nothing of it comes from elsewhere.

Bodies are made of the tables that the endpoints read, replies of the types in `shapes`.
"""

import html
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from legokv.serving import fields as readers
from legokv.serving.fields import MAX_UINT64, Reader
from legokv.serving.gateway import (
    anthropic,
    anthropic_turns,
    facts,
    fields,
    files,
    shapes,
    tool_calls,
    turns,
)
from legokv.version import VERSION

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}


@dataclass(frozen=True)
class _Operation:
    """One path and method. `body` and `query` are tables of readers; `form`: the body is a form."""

    method: str
    path: str
    meaning: str
    reply: tuple[type, ...] = ()
    body: Mapping[str, Reader] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    form: bool = False
    query: Mapping[str, Schema] = field(default_factory=dict)
    others: tuple[str, ...] = ()


_OPENAI_OTHERS = (*fields.WITHOUT_EFFECT, *fields.ASKS_FOR_NOTHING)
_LIMIT = {"type": "integer", "minimum": 1, "maximum": files.MAX_PAGE_LEN}
_ASKED = ("model", "messages")
OPERATIONS = (
    _Operation(
        *("post", "/v1/chat/completions", "Answer a conversation (OpenAI)"),
        *((shapes.ChatCompletion,), fields.CHAT, _ASKED),
        others=_OPENAI_OTHERS,
    ),
    _Operation(
        *("post", "/v1/completions", "Go on with a text (OpenAI)"),
        *((shapes.TextCompletion,), fields.COMPLETION, ("model", "prompt")),
        others=_OPENAI_OTHERS,
    ),
    _Operation(
        *("post", "/v1/messages", "Answer a conversation (Anthropic)"),
        *((shapes.AnthropicMessage,), anthropic.FIELDS, (*_ASKED, "max_tokens")),
        others=anthropic.OTHERS,
    ),
    _Operation(
        *("post", "/v1/messages/count_tokens", "How many tokens a prompt has (Anthropic)"),
        *((shapes.TokensCounted,), anthropic.COUNTED, _ASKED),
        others=anthropic.OTHERS,
    ),
    _Operation(
        *("get", "/v1/models", "The model that answers"),
        (shapes.Models, shapes.AnthropicModels),
    ),
    _Operation(
        *("get", "/v1/models/{model}", "The model of this name"),
        (shapes.Model, shapes.AnthropicModel),
    ),
    _Operation(
        *("post", "/v1/files", "Upload a file (Anthropic's clients leave `purpose` out)"),
        *((shapes.File, shapes.AnthropicFile), files.FORM, ("file", "purpose")),
        form=True,
    ),
    _Operation(
        *("get", "/v1/files", "List files"),
        (shapes.Files, shapes.AnthropicFiles),
        query={
            "limit": _LIMIT,
            "after": _TEXT,
            "order": {"enum": list(files.ORDERS)},
            "purpose": _TEXT,
            "tiers": {"enum": ["true", "false"]},
            "page": _TEXT,
            "ids": {"type": "array", "items": _TEXT, "maxItems": files.MAX_IDS},
        },
    ),
    _Operation(
        *("get", "/v1/files/{file_id}", "One file and its status"),
        (shapes.File, shapes.AnthropicFile),
    ),
    _Operation(
        *("delete", "/v1/files/{file_id}", "Delete a file"),
        (shapes.FileGone, shapes.AnthropicFileGone),
    ),
    _Operation("get", "/v1/files/{file_id}/content", "The file as it was uploaded"),
    _Operation(
        *("post", "/tokenize", "The token ids of a text"),
        *((shapes.Tokenized,), facts.TOKENIZE, ("prompt",)),
    ),
    _Operation(
        *("post", "/detokenize", "The text of token ids"),
        *((shapes.Detokenized,), facts.DETOKENIZE),
    ),
    _Operation("get", "/health", "Whether the process answers", (shapes.Status,)),
    _Operation("get", "/ready", "Whether requests would be answered", (shapes.Status,)),
    _Operation("get", "/version", "The version", (shapes.Version,)),
    _Operation("get", "/metrics", "Figures for Prometheus"),
)
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>legokv API</title>
<meta name="viewport" content="width=device-width"><style>
:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;
padding:0 1rem}}code{{font-size:.9em}}td{{padding:.2rem .8rem .2rem 0;vertical-align:top}}
summary{{cursor:pointer;margin:.4rem 0}}</style>
<h1>legokv {version}</h1><p>The same as <a href="/openapi.json">OpenAPI</a>.</p>
{operations}</html>"""


def openapi_routes() -> list[Route]:
    """`/openapi.json` and `/docs`."""
    return [Route("/openapi.json", _spec), Route("/docs", _page)]


def spec() -> dict[str, Any]:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    kept = _Types()
    for operation in OPERATIONS:
        for reply in (*operation.reply, shapes.Refused, shapes.AnthropicRefused):
            kept.of(reply)
    info = {"title": "legokv", "version": VERSION}
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": {"schemas": kept.schemas},
    }


def _described(operation: _Operation) -> dict[str, Any]:
    refused = {"description": "An error", "content": _json(_any_of(_REFUSALS))}
    replies = {"content": _json(_any_of(operation.reply))} if operation.reply else {}
    return {
        "summary": operation.meaning,
        "parameters": [*_parameters(operation)],
        **({"requestBody": _body(operation)} if operation.body else {}),
        "responses": {"200": {"description": "The answer", **replies}, "default": refused},
    }


_REFUSALS = (shapes.Refused, shapes.AnthropicRefused)


def _parameters(operation: _Operation) -> typing.Iterator[dict[str, Any]]:
    for part in operation.path.split("/"):
        if part.startswith("{"):
            yield {"name": part[1:-1], "in": "path", "required": True, "schema": _TEXT}
    for name, schema in operation.query.items():
        yield {"name": name, "in": "query", "schema": schema}


def _body(operation: _Operation) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {
            **{name: schema_of(reader) for name, reader in operation.body.items()},
            **{name: {} for name in operation.others},
        },
        "required": list(operation.required),
        "additionalProperties": False,
    }
    kind = "multipart/form-data" if operation.form else "application/json"
    return {"required": True, "content": {kind: {"schema": schema}}}


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _any_of(kinds: tuple[type, ...]) -> Schema:
    named = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in kinds]
    return named[0] if len(named) == 1 else {"anyOf": named}


def schema_of(reader: Reader) -> Schema:
    """What a reader takes, as JSON Schema; KeyError for one of a kind that is not known here."""
    if isinstance(reader, partial):
        return _READ[reader.func](reader.keywords)
    return _READ[reader]({})


Bounds = Mapping[str, Any]


def _whole(bounds: Bounds) -> Schema:
    return {"type": "integer", "minimum": bounds["low"], "maximum": bounds["high"]}


def _number(bounds: Bounds) -> Schema:
    if bounds.get("above"):
        least = {"exclusiveMinimum": bounds["low"]}
        return {"type": "number", **least, "maximum": bounds["high"]}
    return {"type": "number", "minimum": bounds["low"], "maximum": bounds["high"]}


def _text(bounds: Bounds) -> Schema:
    longest = bounds.get("max_len")
    return _TEXT if longest is None else {**_TEXT, "maxLength": longest}


def _list(items: Schema, **bounds: Any) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _typed(kinds: typing.Iterable[str]) -> Schema:
    """An object that says what it is."""
    return {**_OBJECT, "properties": {"type": {"enum": list(kinds)}}, "required": ["type"]}


def _message(roles: typing.Iterable[str], kinds: typing.Iterable[str]) -> Schema:
    content = {"anyOf": [_TEXT, _list(_typed(kinds)), {"type": "null"}]}
    members = {"role": {"enum": list(roles)}, "content": content}
    return {**_OBJECT, "properties": members, "required": ["role"]}


def _link(bounds: Bounds) -> Schema:
    members = {name: schema_of(reader) for name, reader in fields.LINK.items()}
    return {**_OBJECT, "properties": members, "additionalProperties": False}


_NAMED: Schema = {**_OBJECT, "properties": {"type": {"const": "function"}, "function": _OBJECT}}
_TITLED: Schema = {**_OBJECT, "properties": {"title": _TEXT, "text": _TEXT}, "required": ["text"]}
_READ: Mapping[Any, Callable[[Bounds], Schema]] = {
    readers.text: _text,
    readers.flag: lambda _: {"type": "boolean"},
    readers.items: lambda _: _list({}),
    readers.texts: lambda _: _list(_TEXT),
    readers.whole_number: _whole,
    readers.whole_numbers: lambda bounds: _list(_whole(bounds)),
    readers.optional_choice: lambda bounds: {"enum": list(bounds["choices"])},
    fields.number: _number,
    fields.seed: lambda _: _whole({"low": -(2**63), "high": MAX_UINT64}),
    fields.stops: lambda _: {"anyOf": [_TEXT, _list(_TEXT, maxItems=fields.MAX_STOPS)]},
    fields.json_object: lambda _: _OBJECT,
    fields.logit_bias: lambda _: {**_OBJECT, "additionalProperties": {"type": "number"}},
    fields.text_or_parts: lambda _: {"anyOf": [_TEXT, _list({})]},
    fields.link: _link,
    fields.messages: lambda _: _list(_message(turns.ROLES, turns.PARTS), minItems=1),
    fields.documents: lambda _: _list(_TITLED),
    fields.tools: lambda _: _list(_NAMED),
    fields.tool_choice: lambda _: {"anyOf": [{"enum": list(tool_calls.CHOICES)}, _NAMED]},
    anthropic.messages: lambda _: _list(
        _message(anthropic_turns.ROLES, anthropic_turns.BLOCKS), minItems=1
    ),
    anthropic.tools: lambda _: _list(_OBJECT),
    anthropic.tool_choice: lambda _: _typed(anthropic.CHOICES),
    files.upload: lambda _: {**_TEXT, "format": "binary"},
    files.digits: lambda bounds: _whole({"low": 1, "high": int(bounds["below"]) - 1}),
    files.word: lambda bounds: {"enum": list(bounds["choices"])},
}


class _Types:
    """JSON Schemas of the types in `shapes`, by name."""

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}

    def of(self, kind: Any) -> Schema:
        """The schema of a type: an object's is kept, and referred to."""
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if typing.is_typeddict(kind):
            return self._object(kind)
        if origin is typing.Literal:
            return {"enum": list(inner)}
        if origin in (types.UnionType, typing.Union):
            return {"anyOf": [self.of(one) for one in inner]}
        if origin is list:
            return {"type": "array", "items": self.of(inner[0])}
        if origin is dict:
            return {**_OBJECT, "additionalProperties": self.of(inner[1])}
        return dict(_PLAIN[kind])

    def _object(self, kind: Any) -> Schema:
        if kind.__name__ not in self.schemas:
            self.schemas[kind.__name__] = {}
            hints = typing.get_type_hints(kind)
            self.schemas[kind.__name__] = {
                **_OBJECT,
                "properties": {name: self.of(hint) for name, hint in hints.items()},
                "required": sorted(kind.__required_keys__),
                "additionalProperties": False,
            }
        return {"$ref": f"#/components/schemas/{kind.__name__}"}


_PLAIN: Mapping[Any, Schema] = {
    str: _TEXT,
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}


async def _spec(request: Request) -> Response:
    return JSONResponse(spec())


async def _page(request: Request) -> Response:
    operations = "".join(map(_shown, OPERATIONS))
    return HTMLResponse(_PAGE.format(version=VERSION, operations=operations))


def _shown(operation: _Operation) -> str:
    head = (
        f"<code>{operation.method.upper()} {html.escape(operation.path)}</code> "
        f"{html.escape(operation.meaning)}"
    )
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code>{' *' if name in operation.required else ''}"
        f"<td>{html.escape(_words(schema_of(reader)))}"
        for name, reader in operation.body.items()
    )
    if not rows:
        return f"<p>{head}</p>"
    return f"<details><summary>{head}</summary><table>{rows}</table></details>"


def _words(schema: Schema) -> str:
    """A schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    words = str(schema.get("type", "anything"))
    if "maximum" in schema:
        least = schema.get("minimum", f"above {schema.get('exclusiveMinimum')}")
        words += f", {least} to {schema['maximum']}"
    if schema.get("properties"):
        words += f" of {', '.join(schema['properties'])}"
    if "items" in schema:
        words += f" of {_words(schema['items'])}"
    return words

"""The paths in OpenAPI's form, and a page that shows them; nothing of it comes from elsewhere."""

import html
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from legokv.serving.gateway import fields
from legokv.version import VERSION

_PATHS = (
    ("post", "/v1/chat/completions", "Answer a conversation (OpenAI)", tuple(fields.CHAT)),
    ("post", "/v1/completions", "Go on with a text (OpenAI)", tuple(fields.COMPLETION)),
    ("post", "/v1/messages", "Answer a conversation (Anthropic)", ()),
    ("get", "/v1/models", "The model that answers", ()),
    ("get", "/v1/models/{model}", "The model of this name", ()),
    ("post", "/v1/files", "Upload a file: a form with `file` and `purpose`", ()),
    ("get", "/v1/files", "List files", ()),
    ("get", "/v1/files/{file_id}", "One file and its status", ()),
    ("delete", "/v1/files/{file_id}", "Delete a file", ()),
    ("get", "/v1/files/{file_id}/content", "The file as it was uploaded", ()),
    ("post", "/tokenize", "The token ids of a text", ("model", "prompt")),
    ("post", "/detokenize", "The text of token ids", ("model", "tokens")),
    ("get", "/health", "Whether the process answers", ()),
    ("get", "/ready", "Whether requests would be answered", ()),
    ("get", "/version", "The version", ()),
    ("get", "/metrics", "Figures for Prometheus", ()),
)
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>legokv API</title>
<meta name="viewport" content="width=device-width"><style>
:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;
padding:0 1rem}}code{{font-size:.9em}}td{{padding:.2rem .8rem .2rem 0;vertical-align:top}}</style>
<h1>legokv {version}</h1><p>The same as <a href="/openapi.json">OpenAPI</a>.</p>
<table>{rows}</table></html>"""


def openapi_routes() -> list[Route]:
    """`/openapi.json` and `/docs`."""
    return [Route("/openapi.json", _spec), Route("/docs", _page)]


def spec() -> dict[str, Any]:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, meaning, names in _PATHS:
        paths.setdefault(path, {})[method] = _operation(path, meaning, names)
    info = {"title": "legokv", "version": VERSION}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _operation(path: str, meaning: str, names: tuple[str, ...]) -> dict[str, Any]:
    places = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    schema = {"type": "object", "properties": {name: {} for name in names}}
    body = {"requestBody": {"content": {"application/json": {"schema": schema}}}} if names else {}
    return {
        "summary": meaning,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in places
        ],
        "responses": {"200": {"description": "The answer"}},
        **body,
    }


async def _spec(request: Request) -> Response:
    return JSONResponse(spec())


async def _page(request: Request) -> Response:
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code><td><code>{html.escape(path)}</code><td>"
        f"{html.escape(meaning)}"
        for method, path, meaning, _ in _PATHS
    )
    return HTMLResponse(_PAGE.format(version=VERSION, rows=rows))

"""A gateway without a model for the page: it has files, and its answers are what a test says."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from legokv.serving.gateway.guard import Rules, guarded
from legokv.serving.gateway.page_routes import page_routes

USAGE = {
    "linked": {"cached_tokens": 152, "compiled_tokens": 40, "recomputed_tokens": 32},
    "full": {"cached_tokens": 0, "compiled_tokens": 0, "recomputed_tokens": 184},
}
FRESH = 16


@dataclass
class PageWorld:
    """What the page asked for, and what it gets."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    pieces: tuple[str, ...] = ("The keeper ", "was **Ana** ", "<b>Reis</b>.")

    def routes(self) -> list[Route]:
        return [
            *page_routes(),
            Route("/ready", self._ready),
            Route("/v1/models", self._models),
            Route("/metrics", self._metrics),
            Route("/v1/files", self._list),
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files/{file_id}", self._delete, methods=["DELETE"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]

    async def _ready(self, request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse("legokv_pool_pages_used 3\n")

    async def _list(self, request: Request) -> Response:
        for file in self.files.values():
            file["status"] = "processed"
            file["legokv"] |= {"compiled_chunks": 1, "tiers": {"pool": 1}}
        return JSONResponse({"object": "list", "data": list(self.files.values())})

    async def _upload(self, request: Request) -> Response:
        form = await request.form()
        upload: Any = form["file"]
        data = await upload.read()
        if not data:
            error = {"message": "the document is empty", "type": "invalid_request_error"}
            return JSONResponse({"error": error}, 400)
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = {
            "id": file_id,
            "bytes": len(data),
            "filename": upload.filename,
            "status": "uploaded",
            "status_details": None,
            "legokv": {"num_tokens": len(data) // 4, "num_chunks": 1, "compiled_chunks": 0},
        }
        return JSONResponse(self.files[file_id])

    async def _delete(self, request: Request) -> Response:
        del self.files[request.path_params["file_id"]]
        return JSONResponse({"deleted": True})

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        for piece in self.pieces:
            yield _event({"choices": [{"index": 0, "delta": {"content": piece}}], "usage": None})
            await asyncio.sleep(0)
        yield _event({"choices": [], "usage": _usage(body["link"]["mode"])})
        yield "data: [DONE]\n\n"


def _usage(mode: str) -> dict[str, Any]:
    own = USAGE["full" if mode == "full" else "linked"]
    prompt = own["cached_tokens"] + own["recomputed_tokens"] + FRESH
    times = {"time_to_first_token_seconds": 0.9 if mode == "full" else 0.042}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": 3,
        "legokv": {**own, "fresh_tokens": FRESH, **times},
    }


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


@contextmanager
def serving_page(world: PageWorld, rules: Rules) -> Iterator[str]:
    """The address of the world behind the guard."""
    app = guarded(Starlette(routes=world.routes()), rules)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(app, lifespan="off", log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

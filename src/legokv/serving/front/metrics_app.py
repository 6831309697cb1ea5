"""The metrics port: one path, Triton's numbers as they are."""

from http import HTTPStatus
from typing import Any

from legokv.serving.front.http_app import Receive, Send
from legokv.serving.front.upstream import Upstream


class MetricsFront:
    """The app (ASGI)."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def shown(self) -> tuple[int, str, bytes]:
        """Status, type and text of the numbers now."""
        try:
            async with self._upstream.request("GET", "/metrics", {}, b"") as response:
                kind = response.headers[b"content-type"].decode()
                return response.status, kind, await response.read()
        except OSError:
            return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"the server is starting\n"

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        status: int = HTTPStatus.NOT_FOUND
        kind, body = "text/plain", b"the metrics are at /metrics\n"
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            status, kind, body = await self.shown()
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

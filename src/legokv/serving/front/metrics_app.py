"""The metrics port: one path, Triton's numbers as they are."""

from http import HTTPStatus
from typing import Any

from legokv.serving.front.http_app import Receive, Send
from legokv.serving.front.upstream import Upstream


class MetricsFront:
    """The app (ASGI)."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        status, kind, body = HTTPStatus.NOT_FOUND, "text/plain", b"the metrics are at /metrics\n"
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            try:
                async with self._upstream.request("GET", "/metrics", {}, b"") as response:
                    status, kind = (
                        HTTPStatus(response.status),
                        response.headers[b"content-type"].decode(),
                    )
                    body = await response.read()
            except OSError:
                status, body = HTTPStatus.SERVICE_UNAVAILABLE, b"the server is starting\n"
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

"""The metrics port: one path, Triton's numbers as they are, and the front's own behind them."""

from http import HTTPStatus
from typing import Any

from legokv.serving.front.http_app import Receive, Send
from legokv.serving.front.state import State
from legokv.serving.front.upstream import Upstream

_REFUSED = "legokv_refused_requests_total"


class MetricsFront:
    """The app (ASGI)."""

    def __init__(self, upstream: Upstream, state: State) -> None:
        self._upstream = upstream
        self._state = state

    async def shown(self) -> tuple[int, str, bytes]:
        """Status, type and text of the numbers now."""
        try:
            async with self._upstream.request("GET", "/metrics", {}, b"") as response:
                kind = response.headers[b"content-type"].decode()
                return response.status, kind, await response.read() + _own_lines(self._state)
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


def _own_lines(state: State) -> bytes:
    counts = (f'{_REFUSED}{{code="{code}"}} {n}' for code, n in state.num_refused.items())
    head = (f"# HELP {_REFUSED} Requests that the front refused", f"# TYPE {_REFUSED} counter")
    return "\n".join((*head, *counts, "")).encode()

"""A front in this process before a server that only remembers what reaches it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from paths import ROOT

from legokv.serving.doors import serve_http
from legokv.serving.front.bounds import Bounds
from legokv.serving.front.http_app import HttpFront
from legokv.serving.front.internals import Internals
from legokv.serving.front.state import State
from legokv.serving.front.tensor_check import models_in
from legokv.serving.front.upstream import Upstream

MODELS = models_in(ROOT / "model_repo")
OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"text": "x"}'


@dataclass
class FakeTriton:
    """Its answer to everything, and what it was asked: whole requests, as they came."""

    answer: bytes = OK
    heard: list[bytes] = field(default_factory=list)
    cut: bool = False
    num_connections: int = 0
    num_left: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        while head := await _head(reader):
            length = [
                line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
            ]
            body = await reader.readexactly(int(length[0].split(b":")[-1])) if length else b""
            self.heard.append(head + body)
            writer.write(self.answer)
            await writer.drain()
            if self.cut:
                break
        self.num_left += 1
        writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@dataclass(frozen=True)
class Running:
    port: int
    triton: FakeTriton
    state: State

    def ask(self, request: bytes, seconds: float = 10) -> bytes:
        """All that comes back until the front closes or says no more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def post(self, path: str, body: bytes, *headers: str) -> tuple[int, bytes]:
        """Status and body of one request."""
        lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
        answer = self.ask(head + body)
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), rest


@contextmanager
def running_front(folder: Path, limits: Bounds) -> Iterator[Running]:
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    triton, state = FakeTriton(), State(answering=True)
    bound = socket.create_server(("127.0.0.1", 0))

    async def run() -> None:
        path = str(folder / "http")
        server = await asyncio.start_unix_server(triton.serve, path)
        upstream = Upstream(path)
        app = HttpFront(limits, upstream, Internals(()), state, MODELS)
        serving = serve_http(app, limits, state, bound)
        ready.set()
        try:
            await serving
        finally:
            await upstream.close()
            server.close()

    def main() -> None:
        asyncio.set_event_loop(loop)
        task = loop.create_task(run())
        task.add_done_callback(lambda _: loop.stop())
        loop.run_forever()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield Running(bound.getsockname()[1], triton, state)
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(10)
        bound.close()

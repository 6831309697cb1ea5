"""The process that clients reach: the front and the gateway in one event loop, and the probe.

Each line of its output is what the probe knows; each line of its input is a sentence with which
new requests are refused from then on, an empty one ends that.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from legokv.parent_death import end_with_parent
from legokv.serving.front.bounds import IDLE_SECONDS, Bounds
from legokv.serving.front.brief import Brief, brief_of_environment
from legokv.serving.front.exposure import is_loopback
from legokv.serving.front.grpc_front import GrpcFront, TritonBehind, listening
from legokv.serving.front.http_app import HttpFront
from legokv.serving.front.http_protocol import bounded_protocol
from legokv.serving.front.internals import Internals
from legokv.serving.front.metrics_app import MetricsFront
from legokv.serving.front.state import Probe, State
from legokv.serving.front.tensor_check import models_in
from legokv.serving.front.upstream import Upstream
from legokv.serving.gateway.app import gateway_app
from legokv.serving.gateway.guard import Rules, guarded
from legokv.serving.gateway.keys import Accounts
from legokv.serving.log import log_to_server
from legokv.serving.settings import Settings
from legokv.serving.settings_sources import settings_from

BEAT_SECONDS = 1.0
_BACKLOG = 2048


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the business of whoever started this process."""
        yield


def serve_http(app: Any, limits: Bounds, state: State, bound: socket.socket) -> asyncio.Task[None]:
    """Answer by this app at a socket, until the task is cancelled."""
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits, state),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    return asyncio.create_task(_Server(config).serve(sockets=[bound]))


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


async def _run(settings: Settings, brief: Brief) -> None:
    limits = Bounds.by_settings(settings)
    internals = Internals((str(settings.cache_dir), str(settings.engine), brief.sockets))
    state = State()
    shut = settings.expose_triton == "off"
    upstream = Upstream(brief.http if shut else _exposed(settings, "http"))
    probe = Probe(upstream, state, brief.probe_id, settings.probe_seconds)
    models = models_in(Path(brief.models))
    triton = TritonBehind(_grpc_target(settings, brief), Path(brief.sockets), shut)
    grpc_front = GrpcFront(triton, models, internals, state, limits)
    numbers = Upstream(brief.metrics if shut else _exposed(settings, "metrics"))
    metrics = MetricsFront(numbers, state)
    tasks = [asyncio.create_task(probe.run()), asyncio.create_task(_beat(probe, state))]
    if settings.api == "on":
        app = gateway_app(settings, models, grpc_front.ask, state, metrics.shown)
        guard = guarded(app, _rules(settings))
        tasks.append(serve_http(guard, limits, state, _bound(settings.host, settings.api_port)))
    if shut:
        http = HttpFront(limits, upstream, internals, state, models)
        host = settings.triton_host
        tasks.append(serve_http(http, limits, state, _bound(host, settings.http_port)))
        tasks.append(serve_http(metrics, limits, state, _bound(host, settings.metrics_port)))
        server = await listening(grpc_front, host, settings.grpc_port, limits)
        tasks.append(asyncio.create_task(server.wait_for_termination()))
    tasks.append(asyncio.create_task(_listen_for_refusals(state)))
    over, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in over:
        task.result()


def _rules(settings: Settings) -> Rules:
    """Whom the gateway answers."""
    return Rules(
        accounts=None if settings.keys_file is None else Accounts(settings.keys_file),
        origins=settings.origins,
        request_bytes=settings.request_bytes,
        local=is_loopback(settings.host),
    )


def _exposed(settings: Settings, name: str) -> tuple[str, int]:
    """Where Triton itself listens for what is called so, from here."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return host, getattr(settings, f"{name}_port")


def _grpc_target(settings: Settings, brief: Brief) -> str:
    if settings.expose_triton == "off":
        return brief.grpc
    host, port = _exposed(settings, "grpc")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _beat(probe: Probe, state: State) -> None:
    """Tell whoever started this what is known, again and again: silence means that it hangs."""
    while True:
        failing = probe.failing_seconds
        line = {
            "reason": probe.reason,
            "failing_seconds": failing,
            "asked": probe.num_asked,
            "refusal": state.refusal,
            "num_open": state.num_open,
        }
        print(json.dumps(line, allow_nan=False), flush=True)
        often = probe.reason or state.refusal
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_SECONDS / 10 if often else BEAT_SECONDS):
                await state.news.wait()
                await asyncio.sleep(BEAT_SECONDS / 10)


async def _listen_for_refusals(state: State) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        state.refusal = line.decode().strip()
        state.news.set()


def main() -> None:
    """Run until killed, or until the process that started this one is gone."""
    end_with_parent(signal.SIGKILL)
    settings = settings_from(None, os.environ, {})
    log_to_server("front", settings, fresh=False)
    uvloop.run(_run(settings, brief_of_environment()))


if __name__ == "__main__":
    main()

"""What the gateway adds to a first and to a streamed token, and what 500 open streams take.

    python -m benchmarks.gateway_overhead [--api http://127.0.0.1:8080] [--grpc 127.0.0.1:8001]

The same chat goes to the gateway and, over gRPC, to `generate`, turn about on a running server.
"""

import argparse
import json
import os
import queue
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import triton_to_np_dtype

FINAL = "triton_final_response"
MESSAGES = [{"role": "user", "content": "Who keeps the lighthouse?"}]


@dataclass(frozen=True)
class Taken:
    """Seconds to the first token, and from one token to the next."""

    first: float
    each: float


def _input(name: str, kind: str, value: object) -> triton.InferInput:
    made = triton.InferInput(name, [1, 1], kind)
    made.set_data_from_numpy(np.array([[value]], triton_to_np_dtype(kind)))
    return made


def by_grpc(client: triton.InferenceServerClient, num_tokens: int) -> Taken:
    """A chat asked of `generate`, over a stream of its own."""
    inputs = [
        _input("messages", "BYTES", json.dumps(MESSAGES)),
        _input("max_tokens", "INT32", num_tokens),
        _input("min_tokens", "INT32", num_tokens),
        _input("temperature", "FP32", 0.0),
        _input("stream", "BOOL", True),
    ]
    replies: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    started = time.perf_counter()
    client.start_stream(lambda result, error: replies.put((result, error)))
    client.async_stream_infer("generate", inputs)
    times = []
    final = False
    while not final:
        result, error = replies.get()
        if error is not None:
            raise error
        times.append(time.perf_counter())
        final = result.get_response().parameters[FINAL].bool_param
    client.stop_stream()
    return _taken(started, times[:-1])


def by_gateway(connection: HTTPConnection, model: str, num_tokens: int) -> Taken:
    """The same chat asked of the gateway."""
    fields = {"model": model, "messages": MESSAGES, "temperature": 0, "stream": True}
    body = json.dumps({**fields, "max_tokens": num_tokens, "min_tokens": num_tokens})
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body)
    response = connection.getresponse()
    times = []
    while line := response.readline():
        if b'"content":"' in line and b'"role"' not in line:
            times.append(time.perf_counter())
    return _taken(started, times)


def _taken(started: float, times: list[float]) -> Taken:
    return Taken(times[0] - started, (times[-1] - times[0]) / max(1, len(times) - 1))


def measure(api: str, grpc: str, num_runs: int, num_tokens: int) -> None:
    """Print medians of both ways, and of what the gateway adds in each pair of runs."""
    place = urlsplit(api)
    connection = HTTPConnection(place.hostname or "", place.port)
    client = triton.InferenceServerClient(grpc)
    model = _model(connection)
    load = os.getloadavg()[0]
    ways: tuple[Callable[[], Taken], ...] = (
        lambda: by_grpc(client, num_tokens),
        lambda: by_gateway(connection, model, num_tokens),
    )
    pairs = []
    for number in range(num_runs + 2):
        order = ways if number % 2 else ways[::-1]
        taken = [way() for way in order]
        pairs.append(taken if number % 2 else taken[::-1])
    for name in ("first", "each"):
        direct, over = ([getattr(p[n], name) * 1e3 for p in pairs[2:]] for n in (0, 1))
        added = [b - a for a, b in zip(direct, over, strict=True)]
        print(
            f"{name:>5} token: generate {statistics.median(direct):.2f} ms, gateway "
            f"{statistics.median(over):.2f} ms, ratio "
            f"{statistics.median(over) / statistics.median(direct):.3f}, added "
            f"{statistics.median(added):.2f} ms (quartiles {_quartiles(added)})"
        )
    for name, way in zip(("generate", "gateway"), ways, strict=True):
        before = _cpu_seconds()
        for _ in range(num_runs):
            way()
        taken_ms = (_cpu_seconds() - before) * 1e3 / num_runs
        print(f"{name}: {taken_ms:.1f} ms of the process's CPU time for an answer")
    print(
        f"{num_runs} pairs of {num_tokens} tokens; load {load:.1f} before, {os.cpu_count()} cores"
    )


def _quartiles(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.2f} to {high:.2f}"


def _model(connection: HTTPConnection) -> str:
    connection.request("GET", "/v1/models")
    return str(json.loads(connection.getresponse().read())["data"][0]["id"])


def hold_streams(api: str, number: int) -> None:
    """Print what the gateway's process holds with so many streams open that nobody reads."""
    place = urlsplit(api)
    connection = HTTPConnection(place.hostname or "", place.port)
    fields = {"model": _model(connection), "messages": MESSAGES, "stream": True}
    body = json.dumps({**fields, "max_tokens": 512, "min_tokens": 512}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    before = resident_bytes()
    streams = []
    for _ in range(number):
        stream = socket.create_connection((place.hostname, place.port))
        stream.sendall(head.encode() + body)
        streams.append(stream)
    most = 0
    for _ in range(40):
        time.sleep(0.25)
        most = max(most, resident_bytes())
    for stream in streams:
        stream.close()
    print(f"{number} streams: {before / 1e6:.0f} MB before, at most {most / 1e6:.0f} MB with them")


def resident_bytes() -> int:
    """Resident memory of the gateway's processes on this machine."""
    return sum(_resident(pid) for pid in _gateways())


def _cpu_seconds() -> float:
    """What the gateway's processes have computed; the front is in the same ones."""
    ticks = 0
    for folder in _gateways():
        words = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _gateways() -> Iterator[Path]:
    for folder in sorted(Path("/proc").iterdir()):
        with suppress(OSError):
            if b"legokv.serving.doors" in (folder / "cmdline").read_bytes().split(b"\0"):
                yield folder


def _resident(folder: Path) -> int:
    return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--api", default="http://127.0.0.1:8080")
    parser.add_argument("--grpc", default="127.0.0.1:8001")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=0)
    parsed = parser.parse_args()
    if parsed.streams:
        hold_streams(parsed.api, parsed.streams)
    else:
        measure(parsed.api, parsed.grpc, parsed.runs, parsed.tokens)


if __name__ == "__main__":
    main()

"""What the front adds to the first token, on a running server: asked through it and past it.

    python -m benchmarks.front_overhead --sockets /tmp/legokv-serve-… [--runs 200]

`--sockets` is the folder with the sockets of the server's Triton.
"""

import argparse
import json
import queue
import statistics
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import triton_to_np_dtype

FIELDS = {"text_input": "Who keeps the lighthouse?", "max_tokens": 4, "stream": True}
FINAL = "triton_final_response"
BODY = json.dumps(FIELDS).encode()


def _input(name: str, kind: str, value: object) -> triton.InferInput:
    made = triton.InferInput(name, [1, 1], kind)
    made.set_data_from_numpy(np.array([[value]], triton_to_np_dtype(kind)))
    return made


INPUTS = [
    _input("text_input", "BYTES", FIELDS["text_input"]),
    _input("max_tokens", "INT32", FIELDS["max_tokens"]),
    _input("stream", "BOOL", True),
]


class SocketConnection(HTTPConnection):
    """HTTP over a local socket."""

    def __init__(self, path: str) -> None:
        super().__init__("triton")
        self._path = path

    def connect(self) -> None:
        self.sock = socket(AF_UNIX)
        self.sock.connect(self._path)


def first_by_http(connection: HTTPConnection) -> float:
    """Seconds to the first byte of the first piece; the rest is read after."""
    started = time.perf_counter()
    connection.request("POST", "/v2/models/generate/generate_stream", BODY)
    response = connection.getresponse()
    response.read1(1)
    seconds = time.perf_counter() - started
    response.read()
    return seconds


def first_by_grpc(client: triton.InferenceServerClient) -> float:
    """The same of the first message of a stream of its own."""
    replies: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    started = time.perf_counter()
    client.start_stream(lambda result, error: replies.put((result, error)))
    client.async_stream_infer("generate", INPUTS)
    result, error = replies.get()
    seconds = time.perf_counter() - started
    while error is None and not result.get_response().parameters[FINAL].bool_param:
        result, error = replies.get()
    if error is not None:
        raise error
    client.stop_stream()
    return seconds


def compare(name: str, past: Callable[[], float], through: Callable[[], float], runs: int) -> None:
    times: dict[str, list[float]] = {"past": [], "through": []}
    for number in range(runs + 5):
        # Neither is always the second.
        order = [("past", past), ("through", through)][:: 1 if number % 2 else -1]
        for way, ask in order:
            seconds = ask()
            if number >= 5:
                times[way].append(seconds * 1000)
    pairs = [t - p for p, t in zip(times["past"], times["through"], strict=True)]
    quarters = statistics.quantiles(pairs, n=4)
    past_ms, through_ms = (statistics.median(times[way]) for way in ("past", "through"))
    print(
        f"{name}: first token {past_ms:.2f} ms past the front, {through_ms:.2f} ms through it: "
        f"{through_ms / past_ms:.3f} times, {quarters[1]:+.2f} ms "
        f"(half of {runs} pairs between {quarters[0]:+.2f} and {quarters[2]:+.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=Path, required=True)
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    http_past = SocketConnection(str(arguments.sockets / "http"))
    http_through = HTTPConnection("127.0.0.1", arguments.http_port)
    grpc_past = triton.InferenceServerClient(f"unix:{arguments.sockets}/grpc:{arguments.grpc_port}")
    grpc_through = triton.InferenceServerClient(f"127.0.0.1:{arguments.grpc_port}")
    ways = (http_past, http_through), (grpc_past, grpc_through)
    for name, first, (past, through) in zip(
        ("HTTP", "gRPC"), (first_by_http, first_by_grpc), ways, strict=True
    ):
        compare(name, partial(first, past), partial(first, through), arguments.runs)


if __name__ == "__main__":
    main()

"""A real `legokv serve` for the tests, and its three models as plain calls over gRPC and HTTP."""

import json
import os
import queue
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import tritonclient.grpc as triton
from faults import Faults
from ports import free_port
from tritonclient.utils import InferenceServerException

from legokv.serving.triton.processes import child_processes

STOP_SECONDS = 60
ANSWER_SECONDS = 120
TYPES = {
    "text_input": "BYTES",
    "messages": "BYTES",
    "tools": "BYTES",
    "document_ids": "BYTES",
    "namespace": "BYTES",
    "system_text": "BYTES",
    "apply_chat_template": "BOOL",
    "mode": "BYTES",
    "link_tokens": "INT32",
    "max_tokens": "INT32",
    "stop_words": "BYTES",
    "stop_token_ids": "INT32",
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "min_p": "FP32",
    "recompute_percent": "FP32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "seed": "UINT64",
    "min_tokens": "INT32",
    "num_return_sequences": "INT32",
    "return_log_probs": "BOOL",
    "num_top_log_probs": "INT32",
    "timeout_seconds": "FP32",
    "stream": "BOOL",
}
DTYPES = {"INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64, "BOOL": np.bool_}


@dataclass(frozen=True)
class RunningServer:
    """Addresses and process of one server that is ready."""

    http: str
    grpc: str
    metrics: str
    api: str
    process: "subprocess.Popen[str]"

    def client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.grpc)

    def processes(self) -> list[int]:
        """Numbers of Triton's process, a child of `legokv serve`, and of those of the models."""
        children = {pid: child_processes(pid) for pid in child_processes(self.process.pid)}
        ((triton, models),) = ((pid, below) for pid, below in children.items() if below)
        assert len(models) == 3
        return [triton, *models]

    def document(self, operation: str, **fields: Any) -> dict[str, Any]:
        """The documents model's reply over gRPC; InferenceServerException where it refuses."""
        body = json.dumps({"operation": operation, **fields}).encode()
        return self.document_bytes(body)

    def document_bytes(self, body: bytes) -> dict[str, Any]:
        with closing(self.client()) as client:
            result = client.infer("documents", [tensor("request", "BYTES", [body], batch=False)])
            return json.loads(result.as_numpy("reply")[0])

    def register(self, *texts: str, **fields: Any) -> list[str]:
        """Ids of the texts, registered and ready."""
        return [self.document("create", text=t, **fields)["document"]["id"] for t in texts]

    def stream(self, **fields: Any) -> list[dict[str, Any]]:
        """All replies of one streamed request over gRPC; raises what it is refused with."""
        with closing(self.client()) as client:
            return list(replies(client, stream=True, **fields))

    def ask(self, **fields: Any) -> dict[str, Any]:
        """The one reply to a request without a stream, over gRPC."""
        with closing(self.client()) as client:
            (reply,) = replies(client, **fields)
            return reply

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of one HTTP request."""
        request = urllib.request.Request(f"{self.http}{path}", body)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def tensor(name: str, kind: str, values: Sequence[Any], *, batch: bool = True) -> triton.InferInput:
    plain = [value.encode() if isinstance(value, str) else value for value in values]
    array = np.array(plain, DTYPES.get(kind, np.object_))
    array = array.reshape(1, -1) if batch else array
    made = triton.InferInput(name, array.shape, kind)
    made.set_data_from_numpy(array)
    return made


def inputs(fields: dict[str, Any]) -> list[triton.InferInput]:
    return [
        tensor(name, TYPES[name], value if isinstance(value, list) else [value])
        for name, value in fields.items()
    ]


def replies(client: triton.InferenceServerClient, **fields: Any) -> Iterator[dict[str, Any]]:
    """Replies as they come; leaving early cancels the request as a client that goes away does."""
    arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: arrived.put((result, error)))
    final = False
    try:
        request_id, parameters = fields.pop("request_id", ""), fields.pop("parameters", None)
        client.async_stream_infer(
            "generate", inputs(fields), request_id=request_id, parameters=parameters
        )
        while not final:
            result, error = arrived.get(timeout=ANSWER_SECONDS)
            if error is not None:
                final = True
                raise error
            response = result.get_response()
            final = response.parameters["triton_final_response"].bool_param
            yield {o.name: plain(result.as_numpy(o.name)[0]) for o in response.outputs}
    finally:
        client.stop_stream(cancel_requests=not final)


def plain(array: np.ndarray[Any, Any]) -> Any:
    """An output without its batch dimension: one value, or a list if there are others."""
    values = [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]
    return values[0] if array.shape == (1,) else values


def command(
    engine: Path, cache_dir: Path, python: str = sys.executable, **settings: Any
) -> list[str]:
    """`legokv serve` on free ports, with the settings as flags.

    Ended requests' pages are kept only if they say so: tests count what is computed.
    """
    ports = {f"{port}_port": free_port() for port in ("http", "grpc", "metrics", "api")}
    own = {"engine": engine, "cache_dir": cache_dir, "num_threads": 1, "kept_tokens": 0}
    given = {**own, **ports, **settings}
    flags = [
        part
        for name, value in given.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    return [python, "-m", "legokv.cli", "serve", "--format", "json", *flags]


@contextmanager
def serving(
    engine: Path,
    cache_dir: Path,
    log: IO[bytes] | None = None,
    faults: Faults | None = None,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[RunningServer]:
    """A server that is ready, ended with the block. `log` gets what it says on standard error.

    With `faults`, its steps fail when they say so. The `environment` is beside this process's own.
    """
    process = subprocess.Popen(
        command(engine, cache_dir, faults.python if faults else sys.executable, **settings),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, **(faults.environment if faults else {}), **(environment or {})},
    )
    try:
        assert process.stdout is not None
        events = (json.loads(line) for line in process.stdout)
        ready = next((event for event in events if event["event"] == "ready"), None)
        assert ready is not None, f"the server ended with status {process.wait()}"
        server = RunningServer(
            ready["http"], ready["grpc"], ready["metrics"], ready.get("api", ""), process
        )
        yield server
        check_failed_steps(server, by_faults=faults is not None)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def check_failed_steps(server: RunningServer, *, by_faults: bool) -> None:
    """No fault of the engine's own has ended all answers, and none of the runner's but by faults.

    A test may have ended the server or its engine: then there is nothing to look at.
    """
    try:
        with urllib.request.urlopen(server.metrics, timeout=60) as response:
            shown = response.read().decode()
    except OSError:
        return
    series = re.findall(r'^legokv_failed_steps_total\{reason="(\w+)"\} (\S+)$', shown, re.MULTILINE)
    failed = {reason for reason, number in series if float(number)}
    assert failed <= ({"runner"} if by_faults else set())


def refusal(error: InferenceServerException) -> tuple[str, str]:
    """Status and sentence of a refused request."""
    return str(error.status()), error.message()

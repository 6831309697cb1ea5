"""A `legokv serve` of its own for a measurement: started on free ports, stopped after the block."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.serving import texts
from benchmarks.serving.drive import Server
from benchmarks.serving.methods import Corpus

STOP_SECONDS = 40


@contextmanager
def serving(engine: Path, cache_dir: Path, settings: dict[str, object]) -> Iterator[str]:
    """The gRPC address of a server that is ready; `settings` are those of `legokv serve`.

    It keeps no ended request's pages unless told: prompts are measured over documents alone.
    """
    ports = {f"{port}_port": "auto" for port in ("http", "grpc", "metrics", "api")}
    given = {"engine": engine, "cache_dir": cache_dir, "kept_tokens": 0, **ports, **settings}
    command = [sys.executable, "-m", "legokv.cli", "serve", "--format", "json"]
    for name, value in given.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield _grpc_address(process)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _grpc_address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None, "the server's output is a pipe"
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "ready":
            return str(event["grpc"])
    raise SystemExit(f"the server ended before it was ready, status {process.wait()}")


def register(url: str, num_documents: int, document_tokens: int) -> Corpus:
    """Register the workload's documents and wait until all are compiled."""
    server = Server(url, "default")
    ids = []
    for number in range(num_documents):
        text = texts.document(number, document_tokens)
        reply = server.documents("create", text=text, name=f"file {number}", wait=True)
        ids.append(str(reply["document"]["id"]))
    return Corpus(ids, document_tokens)

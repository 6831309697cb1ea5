"""Processes that are killed, on either side, while answers are under way."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import TEXTS
from killing import kill_model, next_events
from server import RunningServer, serving
from tritonclient.utils import InferenceServerException

QUESTION = "Who keeps the oldest lighthouse?"
LONG = 900
ERROR_SECONDS = 20


@pytest.mark.parametrize("model", ["engine", "generate"])
def test_a_killed_model_process_ends_its_requests_with_errors_and_documents_survive(
    engine_folder: Path, tmp_path: Path, model: str
) -> None:
    with serving(engine_folder, tmp_path) as server:
        ids = server.register(*TEXTS)
        before = server.ask(text_input=QUESTION, document_ids=ids, max_tokens=12)
        with ThreadPoolExecutor(4) as threads:
            under_way = [threads.submit(ask_for_long, server, ids) for _ in range(4)]
            time.sleep(0.5)
            killed_at = time.monotonic()
            kill_model(server.process.pid, model)
            outcomes = [one.result(ERROR_SECONDS) for one in under_way]
        restarting, ready = next_events(server.process, 2)
        after = server.ask(text_input=QUESTION, document_ids=ids, max_tokens=12)
        listed = server.document("list")["documents"]
    assert restarting["event"] == "restarting"
    assert restarting["reason"] == f"the process of model {model} ended by itself"
    assert ready["event"] == "ready"
    assert ready["grpc"] == server.grpc
    interrupted = [outcome for ended_at, outcome in outcomes if ended_at > killed_at]
    assert interrupted
    assert all(isinstance(outcome, InferenceServerException) for outcome in interrupted)
    assert after["text_output"] == before["text_output"]
    assert after["compiled_tokens"] == 0
    assert [document["id"] for document in listed] == ids


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_client_process_killed_in_mid_stream_frees_its_request(
    engine_folder: Path, tmp_path: Path, kind: str
) -> None:
    # The pool holds one long answer at a time: the second must wait until the first is gone.
    with serving(engine_folder, tmp_path, pool_tokens=2048) as server:
        address = server.grpc if kind == "grpc" else server.http
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENTS[kind], address], stdout=subprocess.PIPE, text=True
        )
        assert client.stdout is not None
        assert client.stdout.readline() == "streaming\n"
        client.kill()
        client.wait()
        started = time.monotonic()
        server.ask(text_input="Who?", max_tokens=1000, stop_words=["e"])
        took = time.monotonic() - started
        whole = server.ask(text_input="Who?", max_tokens=1900)
    assert took < whole["total_seconds"] / 2


CLIENTS = {
    "grpc": """
import queue, sys
import numpy, tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
arrived = queue.SimpleQueue()
client.start_stream(lambda result, error: arrived.put(error))
inputs = []
for name, kind, value in (
    ("text_input", "BYTES", b"Who?"), ("max_tokens", "INT32", 1900), ("stream", "BOOL", True)
):
    array = numpy.array([[value]], {"INT32": numpy.int32, "BOOL": bool}.get(kind, object))
    inputs.append(triton.InferInput(name, [1, 1], kind))
    inputs[-1].set_data_from_numpy(array)
client.async_stream_infer("generate", inputs)
assert arrived.get() is None
print("streaming", flush=True)
arrived.get(timeout=60) and queue.Queue().get()
queue.Queue().get()
""",
    "http": """
import json, queue, sys, urllib.request
body = json.dumps({"text_input": "Who?", "max_tokens": 1900, "stream": True}).encode()
stream = urllib.request.urlopen(f"{sys.argv[1]}/v2/models/generate/generate_stream", body)
assert stream.readline()
print("streaming", flush=True)
queue.Queue().get()
""",
}


def ask_for_long(server: RunningServer, ids: list[str]) -> tuple[float, object]:
    """When the answer or the error came, and which."""
    try:
        outcome = server.ask(text_input=QUESTION, document_ids=ids, max_tokens=LONG)
    except InferenceServerException as error:
        return time.monotonic(), error
    return time.monotonic(), outcome

"""Processes that are killed, on either side, while answers are under way."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from killing import kill_model, next_events
from scrape import at_rest
from server import RunningServer, replies, serving
from server_texts import TEXTS
from tritonclient.utils import InferenceServerException

QUESTION = "Who keeps the oldest lighthouse?"
SLOW = {"return_log_probs": True, "num_top_log_probs": 20}
LONG: dict[str, Any] = {"max_tokens": 1200, "min_tokens": 1200, "stream": True, **SLOW}
ERROR_SECONDS = 120
LEFT: dict[str, Any] = {"max_tokens": 1900, "min_tokens": 1900, "num_return_sequences": 8}


@pytest.mark.parametrize("model", ["engine", "generate"])
def test_a_killed_model_process_ends_its_requests_with_errors_and_documents_survive(
    engine_folder: Path, tmp_path: Path, model: str
) -> None:
    with serving(engine_folder, tmp_path) as server:
        ids = server.register(*TEXTS)
        before = server.ask(text_input=QUESTION, document_ids=ids, max_tokens=12)
        with ThreadPoolExecutor(4) as threads:
            begun = threading.Semaphore(0)
            under_way = [threads.submit(ask_for_long, server, ids, begun) for _ in range(4)]
            for _ in under_way:
                assert begun.acquire(timeout=ERROR_SECONDS)
            kill_model(server.process.pid, model)
            outcomes = [one.result(ERROR_SECONDS) for one in under_way]
        restarting, ready = next_events(server.process, 2)
        after = server.ask(text_input=QUESTION, document_ids=ids, max_tokens=12)
        listed = server.document("list")["documents"]
    assert restarting["event"] == "restarting"
    assert restarting["reason"] == f"the process of model {model} ended by itself"
    assert ready["event"] == "ready"
    assert ready["grpc"] == server.grpc
    # One that began first may be over, or on its way to a slow client.
    assert set(outcomes) <= {"interrupted", "whole"}
    assert "interrupted" in outcomes
    assert after["text_output"] == before["text_output"]
    assert after["compiled_tokens"] == 0
    assert [document["id"] for document in listed] == ids


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_client_process_killed_in_mid_stream_frees_its_request(
    engine_folder: Path, tmp_path: Path, kind: str
) -> None:
    with serving(engine_folder, tmp_path, pool_tokens=16384) as server:
        server.ask(text_input="Who?", max_tokens=1)
        before = at_rest(server)
        address = server.grpc if kind == "grpc" else server.http
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENTS[kind], address, json.dumps(LEFT)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None
        assert client.stdout.readline() == "streaming\n"
        client.kill()
        client.wait()
        grown = at_rest(server).since(before)
    whole = LEFT["num_return_sequences"] * LEFT["max_tokens"]
    assert 0 < grown("legokv_generated_tokens_total") < whole / 2
    assert grown("legokv_pool_pages_used") == 0


CLIENTS = {
    "grpc": """
import json, queue, sys
import numpy, tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
arrived = queue.SimpleQueue()
client.start_stream(lambda result, error: arrived.put(error))
inputs = []
kinds = {"INT32": numpy.int32, "FP32": numpy.float32, "BOOL": bool}
for name, kind, value in (
    ("text_input", "BYTES", b"Who?"), ("temperature", "FP32", 1), ("stream", "BOOL", True),
    *((name, "INT32", value) for name, value in json.loads(sys.argv[2]).items()),
):
    array = numpy.array([[value]], kinds.get(kind, object))
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
asked = {"text_input": "Who?", "temperature": 1, "stream": True, **json.loads(sys.argv[2])}
body = json.dumps(asked).encode()
stream = urllib.request.urlopen(f"{sys.argv[1]}/v2/models/generate/generate_stream", body)
assert stream.readline()
print("streaming", flush=True)
queue.Queue().get()
""",
}


def ask_for_long(server: RunningServer, ids: list[str], begun: threading.Semaphore) -> str:
    """What came of the answer, which begins with its first token."""
    with closing(server.client()) as client:
        answer = replies(client, text_input=QUESTION, document_ids=ids, **LONG)
        try:
            next(answer)
            begun.release()
            *_, last = answer
        except InferenceServerException:
            return "interrupted"
    return "whole" if last["generated_tokens"] == LONG["max_tokens"] else "cut"

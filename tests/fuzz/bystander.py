"""An honest client beside the fuzzer: its answers must stay what they are in an idle server."""

import http.client
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

TEXTS = (
    "The harbour of Vellin has three lighthouses. The oldest stands on the northern pier. " * 3,
    "The ferry of Vellin leaves at seven and comes back at nine, except on market days. " * 3,
    "Größe und Gewicht: 12 µm, 東京, 👩‍🔬. The keeper of the oldest lighthouse is Orrin. " * 3,
)
_QUESTIONS: Sequence[dict[str, Any]] = (
    {"text_input": "Who keeps the lighthouse?", "max_tokens": 12, "documents": (0, 2)},
    {"text_input": "When does the ferry leave?", "max_tokens": 12, "documents": (1,), "seed": 7,
     "temperature": 0.9, "top_p": 0.95},
    {"text_input": "The sea", "max_tokens": 12, "return_log_probs": True, "documents": ()},
    {"text_input": "What is sold?", "max_tokens": 12, "documents": (2, 1, 0)},
)  # fmt: skip
_TIMES = ("_seconds", "request_id", "compiled_tokens")
PAUSE_SECONDS = 0.2
WAIT_SECONDS = 300


class Bystander(threading.Thread):
    """Asks until it is told to stop. `wrong` are answers unlike the idle ones, `failures` none."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._stop_asking = threading.Event()
        self.ids = [_register(address, text) for text in TEXTS]
        self._questions = [
            {**q, "document_ids": [self.ids[n] for n in q["documents"]]} for q in _QUESTIONS
        ]
        for question in self._questions:
            del question["documents"]
        self._idle = [self._answer(question) for question in self._questions]
        self.answers, self.wrong, self.failures = 0, list[str](), list[str]()

    def run(self) -> None:
        while not self._stop_asking.wait(PAUSE_SECONDS):
            for question, idle in zip(self._questions, self._idle, strict=True):
                self._compare(question, idle)

    def stop(self) -> None:
        self._stop_asking.set()
        self.join()

    def _compare(self, question: dict[str, Any], idle: Any) -> None:
        try:
            answer = self._answer(question)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.failures.append(f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}")
            return
        self.answers += 1
        if answer != idle:
            self.wrong.append(f"{question['text_input']}: {answer} for {idle}")

    def _answer(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """All events of a streamed answer, without what is another at each asking."""
        body = {**question, "stream": True}
        lines = _post(self._address, "/v2/models/generate/generate_stream", body).splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        if any("error" in event for event in events):
            raise ValueError(str(events)[:300])
        return [
            {name: value for name, value in event.items() if not name.endswith(_TIMES)}
            for event in events
        ]


def _register(address: str, text: str) -> str:
    request = json.dumps({"operation": "create", "text": text, "namespace": "default"})
    tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [request]}
    reply = json.loads(_post(address, "/v2/models/documents/infer", {"inputs": [tensor]}))
    document = json.loads(reply["outputs"][0]["data"][0])["document"]
    return str(document["id"])


def _post(address: str, path: str, body: dict[str, Any]) -> str:
    connection = http.client.HTTPConnection(address, timeout=WAIT_SECONDS)
    try:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        content = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"{answer.status}: {content[:300]}")
    return content

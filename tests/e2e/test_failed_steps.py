"""A served model whose steps fail: requests end with a sentence, and the server goes on."""

from contextlib import closing
from pathlib import Path

import pytest
from faults import Faults
from server import RunningServer, refusal, replies, serving
from server_texts import TEXTS
from tritonclient.utils import InferenceServerException

QUESTION = "Who keeps the oldest lighthouse?"
UNENDING = {"max_tokens": 1500, "min_tokens": 1500}
KINDS = ("legokv.errors.LaunchRefused", "MemoryError", "RuntimeError", "IndexError")


def test_failed_steps_end_their_requests_and_the_same_processes_answer_the_next(
    engine_folder: Path, tmp_path: Path
) -> None:
    faults, log = Faults(tmp_path), tmp_path / "log"
    with (
        log.open("wb") as file,
        serving(engine_folder, tmp_path / "cache", file, faults) as server,
    ):
        ids, processes = server.register(*TEXTS[:2]), server.processes()
        before = server.ask(text_input=QUESTION, document_ids=ids, max_tokens=12)
        for kind in KINDS:
            for _ in range(2):
                ask_in_vain(server, faults, ids, kind)
        after = server.ask(text_input=QUESTION, document_ids=ids, max_tokens=12)
        assert server.document("create", text=TEXTS[2])["document"]["state"] == "ready"
        assert server.processes() == processes
    assert after["text_output"] == before["text_output"]
    assert after["compiled_tokens"] == 0
    said = log.read_text()
    assert "Traceback (most recent call last)" in said
    assert all(f"{kind.rpartition('.')[2]}: on purpose" in said for kind in KINDS)


def ask_in_vain(server: RunningServer, faults: Faults, ids: list[str], kind: str) -> None:
    """A prompt, an answer under way and a document, each ended by failing steps."""
    module, _, name = kind.rpartition(".")
    sentence = f"a step failed: {'' if module else name + ': '}on purpose"
    with faults.raising(kind), pytest.raises(InferenceServerException) as refused:
        server.ask(text_input=QUESTION, document_ids=ids, max_tokens=12)
    assert refusal(refused.value)[1].endswith(sentence)
    with closing(server.client()) as client:
        answering = replies(client, text_input=QUESTION, stream=True, **UNENDING)
        next(answering)
        with faults.raising(kind), pytest.raises(InferenceServerException, match="on purpose"):
            list(answering)
    with faults.raising(kind):
        document = server.document("create", text=TEXTS[2])["document"]
    assert document["state"] == "failed"
    assert document["failure"] == sentence
    server.document("delete", id=document["id"])

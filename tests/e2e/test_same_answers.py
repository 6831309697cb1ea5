"""Answers beside other clients are the idle server's, to the last digit of their probabilities."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from server import RunningServer, serving
from server_texts import TEXTS

from legokv.build.engine import BuildSettings, build_engine_folder

NUM_CLIENTS, NUM_ROUNDS = 3, 5
# Longer than one part of attention's keys, and than a step: prompts and documents are split.
SETTINGS = {"pool_tokens": 16384, "max_step_tokens": 192, "max_chunk_tokens": 1024}
LONG = tuple(text * 2 for text in TEXTS)
QUESTION = "Who keeps the oldest lighthouse?"
DRAWN = {"temperature": 1.2, "top_k": 60, "seed": 21}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def crowded(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("engine") / request.param
    build_engine_folder(
        tiny_checkpoint("llama"), folder, BuildSettings("llama", dtype=request.param)
    )
    cache = tmp_path_factory.mktemp("cache")
    with serving(folder, cache, attention="native", **{**SETTINGS, "num_threads": 2}) as server:
        yield server


def canaries(documents: list[str]) -> list[dict[str, Any]]:
    """Greedy and drawn, over documents that others use too and over none, one answer and three."""
    asked = {"text_input": QUESTION, "max_tokens": 12, "return_log_probs": True}
    return [
        {**asked, "document_ids": documents[:2]},
        {**asked, "document_ids": [documents[2], documents[0], documents[1]], **DRAWN},
        {**asked, **DRAWN},
        {**asked, "text_input": QUESTION * 60},
        {**asked, "document_ids": documents[1:2], "num_return_sequences": 3, **DRAWN},
    ]


@contextmanager
def other_clients(server: RunningServer, documents: list[str]) -> Iterator[None]:
    """Clients that ask, and register documents, until the block ends; their failures show."""
    over, failures = threading.Event(), []

    def ask(number: int) -> None:
        dice = random.Random(number)
        while not over.is_set():
            chosen = dice.sample(documents, dice.randint(0, len(documents)))
            text = f"{QUESTION} ({dice.random()})" * dice.randint(1, 12)
            try:
                if dice.random() < 0.2:
                    server.register(text)
                server.ask(text_input=text, document_ids=chosen, max_tokens=dice.randint(1, 20))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                failures.append(error)

    clients = [threading.Thread(target=ask, args=(n,)) for n in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join()
    assert not failures


def told(reply: dict[str, Any]) -> dict[str, Any]:
    """What the reply says of the answer, without what it says of times and the cache."""
    return {name: reply[name] for name in ("text_output", "token_log_probs", "finish_reason")}


def test_greedy_and_seeded_answers_beside_other_clients_are_the_idle_ones(
    crowded: RunningServer,
) -> None:
    documents = crowded.register(*LONG)
    asked = canaries(documents)
    idle = [told(crowded.ask(**fields)) for fields in asked]
    with other_clients(crowded, documents):
        for _ in range(NUM_ROUNDS):
            for fields, expected in zip(asked, idle, strict=True):
                assert told(crowded.ask(**fields)) == expected

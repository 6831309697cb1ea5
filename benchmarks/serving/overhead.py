"""What the server adds to the engine: to its first token, and to each token that is streamed."""

import itertools
import statistics
import time
from typing import Any

from benchmarks.record.journal import Journal
from benchmarks.record.results import Row
from benchmarks.record.statistics import spread
from benchmarks.serving.drive import Answer, Server, ask
from benchmarks.serving.sweep import Served
from benchmarks.serving.workload import Arrival
from legokv import Engine, EngineSettings
from legokv.engine.request import GenerateRequest, Token

KEY = "overhead"
MAX_TOKENS = 32


def measure(served: Served, rounds: int) -> None:
    """Rounds of one request to the server and an equally long one to an engine in this process."""
    if KEY in served.journal or served.limit.over:
        return
    engine = Engine.open(
        served.size.engine, settings=EngineSettings(num_threads=served.size.threads)
    )
    answers, alone = [], []
    # One connection, and the first round makes it: how long that takes is not the server's.
    target = served.target
    server = Server(target.url, "default")
    per_request = served.setup.workload.documents_per_request
    for number in range(rounds + 1):
        request = Arrival(0.0, tuple(range(per_request)), number)
        answers.append(answer := ask(server, target, request, time.monotonic()))
        alone.append(_seconds_per_token(engine, answer, per_request))
    # The first of each compiles chunks and fills caches.
    served.journal.add(KEY, _found(answers[1:], alone[1:]))


def _seconds_per_token(engine: Engine, answer: Answer, num_chunks: int) -> float | None:
    """Median time between tokens; None for an answer of one token."""
    assert answer.usage is not None, f"one request alone was refused: {answer.refused}"
    each = answer.usage["prompt_tokens"] // num_chunks
    chunks = [engine.chunk([100 + number] * each, persistent=False) for number in range(num_chunks)]
    request = GenerateRequest([*chunks, [17] * 16], MAX_TOKENS)
    job = engine.submit(request)
    came = [time.perf_counter() for event in engine.results(job) if isinstance(event, Token)]
    gaps = [after - before for before, after in itertools.pairwise(came)]
    return statistics.median(gaps) if gaps else None


def _found(answers: list[Answer], alone: list[float | None]) -> dict[str, Any]:
    usages = [answer.usage or {} for answer in answers]
    return {
        "first token": [
            answer.time_to_first_token - usage["engine_time_to_first_token_seconds"]
            for answer, usage in zip(answers, usages, strict=True)
        ],
        "each token": [
            answer.time_per_output_token - seconds
            for answer, seconds in zip(answers, alone, strict=True)
            if answer.time_per_output_token is not None and seconds is not None
        ],
    }


def rows(journal: Journal) -> list[Row]:
    found = journal.get(KEY) or {}
    return [
        {"experiment": KEY, "method": name, "unit": "seconds", **spread(values).as_row()}
        for name, values in found.items()
        if values
    ]

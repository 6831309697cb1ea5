"""Sends a workload to a server at its own times and takes each request's times. gRPC, streamed."""

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.record.about import ROOT
from benchmarks.record.statistics import percentile
from benchmarks.serving import texts
from benchmarks.serving.methods import Corpus, Method
from benchmarks.serving.workload import Arrival

sys.path.insert(0, str(ROOT / "client"))
from connection import Refused, Server

MAX_IN_FLIGHT = 256


@dataclass(frozen=True)
class Answer:
    """One request's times in seconds, from when it should have been sent, and its usage.

    A refused request has a reason and no times, an answer of one token no time per token.
    """

    time_to_first_token: float = 0.0
    time_per_output_token: float | None = None
    usage: dict[str, Any] | None = None
    refused: str = ""


@dataclass(frozen=True)
class Target:
    """Where requests go and in what form."""

    url: str
    corpus: Corpus
    method: Method
    max_tokens: int


def drive(target: Target, requests: Sequence[Arrival]) -> list[Answer]:
    """Send each request at its time, however many are under way; their answers, in order."""
    connections = threading.local()
    with ThreadPoolExecutor(min(len(requests), MAX_IN_FLIGHT)) as threads:
        started = time.monotonic() + 0.2
        waiting = []
        for request in requests:
            time.sleep(max(started + request.at_seconds - time.monotonic(), 0))
            due = started + request.at_seconds
            waiting.append(threads.submit(_answer, target, request, due, connections))
        return [each.result() for each in waiting]


def _answer(target: Target, request: Arrival, due: float, connections: threading.local) -> Answer:
    # One connection a thread: a client has one stream.
    if not hasattr(connections, "server"):
        connections.server = Server(target.url, "default")
    return ask(connections.server, target, request, due)


def ask(server: Server, target: Target, request: Arrival, due: float) -> Answer:
    """One request over a connection that is there already; `due` is by the monotonic clock."""
    question = texts.question(request.question)
    fields = target.method(target.corpus, request.documents, question)
    fields |= {"max_tokens": target.max_tokens, "stream": True}
    first = last = 0.0
    reply: dict[str, Any] = {}
    try:
        with closing(server.answers(fields)) as replies:
            for reply in replies:  # noqa: B007 - the last is used
                first = first or time.monotonic()
                last = time.monotonic()
    except Refused as reason:
        return Answer(refused=str(reason))
    steps = int(reply["generated_tokens"]) - 1
    return Answer(first - due, (last - first) / steps if steps else None, reply)


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Percentiles of the answered, how many were refused, and the shares of prompt tokens."""
    answered = [answer for answer in answers if answer.usage is not None]
    made: dict[str, Any] = {"requests": len(answers), "refused": len(answers) - len(answered)}
    if not answered:
        return made
    for name in ("time_to_first_token", "time_per_output_token"):
        times = [getattr(answer, name) for answer in answered]
        values = [seconds for seconds in times if seconds is not None]
        if values:
            made |= {f"{name}_p{p}": percentile(values, p) for p in (50, 90, 99)}
    usages = [answer.usage or {} for answer in answered]
    prompt = sum(usage["prompt_tokens"] for usage in usages)
    made["prompt_tokens"] = prompt / len(usages)
    for kind in ("cached", "recomputed", "fresh", "compiled"):
        made[f"{kind}_share"] = sum(usage[f"{kind}_tokens"] for usage in usages) / prompt
    for part in ("lookup", "queue", "load", "compile", "link"):
        made[f"{part}_seconds_p50"] = percentile([u[f"{part}_seconds"] for u in usages], 50)
    return made


def decay(answers: Sequence[Answer], parts: int = 4) -> list[float]:
    """Share of prompt tokens found in a cache, in each part of the run: decay shows as a fall."""
    shares = []
    usages = [asdict(answer)["usage"] for answer in answers if answer.usage is not None]
    for part in range(parts):
        some = usages[part * len(usages) // parts : (part + 1) * len(usages) // parts]
        prompt = sum(usage["prompt_tokens"] for usage in some)
        found = sum(usage["cached_tokens"] - usage["compiled_tokens"] for usage in some)
        shares.append(max(found, 0) / prompt if prompt else 0.0)
    return shares

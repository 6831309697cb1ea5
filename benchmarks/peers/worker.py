"""The side of the peers' harness that runs inside a peer: requests in, seconds out, as JSON lines.

Standard library only: it runs in each peer's own environment. The measuring process stops a worker
between its turns, so no idle thread of one peer spins beside another.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO


@dataclass(frozen=True)
class Prompt:
    """Documents one after another, then a question, all as token ids."""

    documents: tuple[tuple[int, ...], ...]
    question: tuple[int, ...]

    @property
    def token_ids(self) -> list[int]:
        return [token for part in (*self.documents, self.question) for token in part]


@dataclass(frozen=True)
class Place:
    """Where a peer finds the model, and how many threads it may use."""

    checkpoint: Path
    gguf: Path
    engine: Path
    num_threads: int
    context_tokens: int


class Peer(Protocol):
    """One serving engine. `reuse` is nothing, prefix, documents or documents-0."""

    version: str

    def prepare(self, prompts: Sequence[Prompt], reuse: str) -> None:
        """What was done before the request came: not timed."""

    def generate(self, prompts: Sequence[Prompt], num_tokens: int, reuse: str) -> None:
        """Answer all prompts together, each with exactly `num_tokens` greedy tokens."""


def serve(open_peer: Callable[[Place], Peer]) -> None:
    """Answer requests from standard input until it ends."""
    # Engines print to standard output; replies go to a copy of it, prints to standard error.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    peer = open_peer(_place(json.loads(sys.stdin.readline())))
    _reply(replies, {"version": peer.version})
    for line in sys.stdin:
        request = json.loads(line)
        prompts = [_prompt(fields) for fields in request["prompts"]]
        peer.prepare(prompts, request["reuse"])
        started, used = time.perf_counter(), time.process_time()
        peer.generate(prompts, request["num_tokens"], request["reuse"])
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
        _reply(replies, {"seconds": seconds, "cpu_seconds": cpu_seconds})


def _reply(file: TextIO, value: dict[str, object]) -> None:
    print(json.dumps(value), file=file, flush=True)


def _place(fields: dict[str, str]) -> Place:
    paths = {name: Path(fields[name]) for name in ("checkpoint", "gguf", "engine")}
    return Place(
        **paths,
        num_threads=int(fields["num_threads"]),
        context_tokens=int(fields["context_tokens"]),
    )


def _prompt(fields: dict[str, list[list[int]]]) -> Prompt:
    return Prompt(tuple(map(tuple, fields["documents"])), tuple(fields["question"]))

"""What a conversation's second turn costs beside as many new tokens behind one compiled prefix.

Eight documents, a question and an answer; then new tokens. Methods interleaved in one process: the
turn that goes on from the first one's pages, the same tokens behind a single chunk that holds all
before them, and the turn without anything kept.
"""

import argparse
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from legokv import Engine, EngineSettings, GenerateRequest
from legokv.engine.jobs import Prefill
from legokv.engine.request import Usage

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "turns"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--document-tokens", type=int, default=512)
    parser.add_argument("--question-tokens", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def prefill(engine: Engine, segments: list[object], namespace: str | None) -> Usage:
    """What the prompt took to its first logits."""
    request = GenerateRequest(segments, 0, namespace=namespace)  # type: ignore[arg-type]
    (result,) = engine.results(engine.submit(request))
    assert isinstance(result, Prefill), "a request for 0 tokens ends with its logits"
    return result.usage


def turns(engine: Engine, arguments: argparse.Namespace) -> dict[str, Callable[[], Usage]]:
    """The methods by name, each with new tokens at every call; the first turn is over."""
    dice = np.random.Generator(np.random.PCG64(0))
    vocabulary = engine.facts.model.vocab_size

    def random_ids(length: int) -> list[int]:
        return [int(i) for i in dice.integers(17, vocabulary, length)]

    texts = [random_ids(arguments.document_tokens) for _ in range(arguments.documents)]
    documents = [engine.compile(text) for text in texts]
    said = random_ids(arguments.question_tokens + arguments.answer_tokens)
    prefill(engine, [*documents, said], NAMESPACE)
    whole = engine.compile([*(token for text in texts for token in text), *said])

    def new() -> list[int]:
        return random_ids(arguments.new_tokens)

    return {
        "second turn": lambda: prefill(engine, [*documents, said + new()], NAMESPACE),
        "whole prefix": lambda: prefill(engine, [whole, new()], None),
        "nothing kept": lambda: prefill(engine, [*documents, said + new()], None),
    }


def report(seconds: dict[str, list[float]]) -> None:
    for name, values in seconds.items():
        print(
            f"{name:>14}: median {statistics.median(values) * 1e3:8.1f} ms   "
            f"({min(values) * 1e3:.1f} to {max(values) * 1e3:.1f})"
        )
    pairs = zip(seconds["second turn"], seconds["whole prefix"], strict=True)
    ratio = statistics.median(turn / prefix for turn, prefix in pairs)
    print(f"second turn / whole prefix: median of ratios {ratio:.2f}")


def main() -> None:
    arguments = parse_arguments()
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(described, capture_output=True, text=True, check=False)
    settings = EngineSettings(num_threads=arguments.threads, kept_tokens=16384)
    engine = Engine.open(arguments.engine, settings=settings)
    print(
        f"commit {commit.stdout.strip()}, {engine.facts.dtype}, torch {torch.__version__}, "
        f"{arguments.threads} threads, {arguments.rounds} interleaved rounds, "
        f"{arguments.new_tokens} new tokens behind {arguments.documents} documents of "
        f"{arguments.document_tokens}"
    )
    methods = turns(engine, arguments)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(arguments.rounds + 1):
        for name, method in methods.items():
            usage = method()
            if number:
                seconds[name].append(usage.time_to_first_token_seconds)
    report(seconds)


if __name__ == "__main__":
    main()

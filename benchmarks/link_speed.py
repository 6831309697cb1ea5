"""How much faster a link is than full prefill, and how far from the price of its tokens alone.

Eight chunks of 512 tokens and 32 fresh ones; methods interleaved in one process, medians printed,
and each one's ratio to the link, round by round.
"""

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from legokv import Chunk, Engine, EngineSettings
from legokv.built.settings import AttentionName

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--fresh-tokens", type=int, default=32)
    parser.add_argument("--link-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", choices=get_args(AttentionName), default="native")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def interleaved(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each method, one call of each a round, after a round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            started = time.perf_counter()
            method()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def methods(engine: Engine, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    dice = np.random.Generator(np.random.PCG64(0))
    vocabulary = engine.facts.model.vocab_size

    def random_ids(length: int) -> list[int]:
        return dice.integers(17, vocabulary, length).tolist()

    chunks: list[Chunk] = [
        engine.compile(random_ids(arguments.chunk_tokens)) for _ in range(arguments.chunks)
    ]
    segments = [*chunks, random_ids(arguments.fresh_tokens)]
    computed = arguments.link_tokens * (arguments.chunks - 1) + arguments.fresh_tokens
    plain = random_ids(computed)
    return {
        "full": lambda: engine.prefill(segments, mode="full"),
        "link": lambda: engine.prefill(segments, link_tokens=arguments.link_tokens),
        "link k=0": lambda: engine.prefill(segments, link_tokens=0),
        f"{computed} plain tokens": lambda: engine.prefill([plain]),
    }


def report(seconds: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        ratios = [one / link for one, link in zip(values, seconds["link"], strict=True)]
        print(
            f"{name:>19}: median {medians[name] * 1e3:8.1f} ms   "
            f"({min(values) * 1e3:.1f} to {max(values) * 1e3:.1f})   over the link "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    full, link, _, plain = list(medians.values())[:4]
    print(f"full / link {full / link:.1f}    link / plain {link / plain:.2f}")


def main() -> None:
    arguments = parse_arguments()
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    engine = Engine.open(
        arguments.engine,
        settings=EngineSettings(num_threads=arguments.threads, attention=arguments.attention),
    )
    print(
        f"commit {commit.stdout.strip()}, {engine.facts.dtype}, torch {torch.__version__}, ", end=""
    )
    print(f"attention: {engine.runner.attention.description}, ", end="")
    print(f"{arguments.threads} threads, {arguments.rounds} interleaved rounds")
    report(interleaved(methods(engine, arguments), arguments.rounds))


if __name__ == "__main__":
    main()

"""How long it takes to draw a token from a model's own logits, option by option.

    out/venv/bin/python benchmarks/sampler_speed.py

Interleaved, over logits along a text; the median of all draws, beside one that sorts every token.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legokv import Engine
from legokv.engine.sampling import Sampler, SamplingOptions, token_log_probs

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "examples" / "documents" / "ferry_line.txt"
NUM_PLACES = 40
PROMPT_TOKENS = 4128
Draw = Callable[[NDArray[np.float32]], object]
OPTIONS = {
    "greedy": {},
    "all tokens": {"temperature": 0.8},
    "top_k 40": {"temperature": 0.8, "top_k": 40},
    "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_k 40, top_p 0.95": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "top_k 40 and all penalties": {
        "temperature": 0.8,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
    },
}


class SortingDraw:
    """Top-p over a stable sort of all tokens: what the sampler is to be faster than."""

    def __init__(self, temperature: float, top_p: float) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.Generator(np.random.PCG64(1))

    def __call__(self, logits: NDArray[np.float32]) -> int:
        scaled = logits.astype(np.float64) / self._temperature
        order = np.argsort(-scaled, kind="stable")
        weights = np.exp(scaled[order] - scaled[order[0]])
        before = np.cumsum(weights) - weights
        kept = order[before < self._top_p * weights.sum()]
        weights = weights[: len(kept)]
        return int(self._random.choice(kept, p=weights / weights.sum()))


def draws(vocabulary: int) -> dict[str, Draw]:
    prompt = np.random.Generator(np.random.PCG64(2)).integers(0, vocabulary, PROMPT_TOKENS)
    made: dict[str, Draw] = {
        name: Sampler(SamplingOptions(seed=1, **options), prompt.tolist()).next
        for name, options in OPTIONS.items()
    }
    made["sorting all tokens, top_p 0.95"] = SortingDraw(0.8, 0.95)
    made["log-probabilities, 5 likeliest"] = lambda logits: token_log_probs(logits, 7, 5)
    return made


def logits_along_a_text(engine_folder: Path) -> list[NDArray[np.float32]]:
    """The model's logits after ever more of a document."""
    engine = Engine.open(engine_folder)
    ids = engine.tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    ends = np.linspace(8, len(ids), NUM_PLACES).astype(int)
    return [engine.prefill([ids[:end]]).logits.numpy() for end in ends.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    places = logits_along_a_text(arguments.engine)
    made = draws(len(places[0]))
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(arguments.rounds):
        for logits in places:
            for name, draw in made.items():
                started = time.perf_counter()
                draw(logits)
                times[name].append(time.perf_counter() - started)
    num_draws = arguments.rounds * len(places)
    print(f"{len(places[0])} tokens, {num_draws} draws each, {os.cpu_count()} CPUs; milliseconds")
    for name, found in times.items():
        low, high = (1e3 * value for value in np.percentile(found, [10, 90]))
        print(f"{name:32} {1e3 * statistics.median(found):7.3f}  ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()

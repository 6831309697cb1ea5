"""How long it takes to draw tokens, option by option: one row, a batch, and row by row as before.

    out/venv/bin/python benchmarks/sampler_speed.py

Interleaved, one thread unless told; medians of the process' own time, which others on the machine
lengthen less. By the CPU library, by torch, which draws where there is no library, and "before":
NumPy row by row, as tokens were drawn until they went in batches. The
last lines are of masks: compiling a format, and its mask for a token.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from legokv.engine.draw import draw_tokens
from legokv.engine.sampling import Sampler, SamplingOptions, largest, token_log_probs
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.native_library import NativeLibrary
from legokv.text.answer_format import read_format
from legokv.text.grammar import Grammars
from legokv.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
SPREAD = 3.0
"""Standard deviation of the logits: a few hundred tokens have most of the probability."""
PROMPT_TOKENS = 4128
OPTIONS: dict[str, dict[str, float]] = {
    "greedy": {},
    "all tokens": {"temperature": 0.8},
    "top_k 40": {"temperature": 0.8, "top_k": 40},
    "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_k 40, top_p 0.95": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "top_p 0.95, flat": {"temperature": 100.0, "top_p": 0.95},
    "top_k 40 and all penalties": {
        "temperature": 0.8,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
    },
    "required": ["name", "age"],
}


def before(logits: NDArray[np.float32], options: SamplingOptions, place: float) -> int:
    """A token drawn from one row, without penalties, by the code before batches."""
    if not np.isfinite(logits).all():
        raise ValueError("not finite")
    if not options.temperature:
        return int(logits.argmax())
    ids = largest(logits, options.top_k or len(logits))
    kept = logits[ids].astype(np.float64)
    weights = np.exp((kept - kept.max()) / options.temperature)
    if options.top_p < 1:
        inside = largest(weights, _num_reaching(weights, options.top_p))
        ids, weights = ids[inside], weights[inside]
    likely = weights >= options.min_p
    ids, shares = ids[likely], np.cumsum(weights[likely])
    at = np.searchsorted(shares, place * shares[-1], side="right")
    return int(ids[min(at, len(ids) - 1)])


def _num_reaching(weights: NDArray[np.float64], share: float) -> int:
    threshold, looked_at = share * weights.sum(), min(256, len(weights))
    while True:
        shares = np.cumsum(np.sort(np.partition(weights, -looked_at)[-looked_at:])[::-1])
        if shares[-1] >= threshold or looked_at == len(weights):
            return min(int(np.searchsorted(shares, threshold)) + 1, looked_at)
        looked_at = min(16 * looked_at, len(weights))


def milliseconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return 1e3 * (time.process_time() - started)


def calls(
    logits: torch.Tensor, options: SamplingOptions, library: NativeLibrary
) -> dict[str, Callable[[], object]]:
    """One row, all rows, both by torch, and some rows by the code before."""
    vocabulary, random = logits.shape[1], np.random.Generator(np.random.PCG64(2))
    prompt = random.integers(0, vocabulary, PROMPT_TOKENS).tolist()
    draws = [Sampler(options, prompt, row).draw(row) for row in range(len(logits))]
    rows = logits.numpy()
    return {
        "row": lambda: draw_tokens(logits, draws[:1], library),
        "batch": lambda: draw_tokens(logits, draws, library),
        "torch row": lambda: draw_tokens(logits, draws[:1]),
        "torch batch": lambda: draw_tokens(logits, draws),
        "before": lambda: [before(row, options, 0.5) for row in rows[:4]],
    }


def print_draws(vocabulary: int, num_rows: int, rounds: int) -> None:
    random = np.random.Generator(np.random.PCG64(1))
    values = random.standard_normal((num_rows, vocabulary), dtype=np.float32) * SPREAD
    logits = torch.from_numpy(values)
    library = NativeLibrary(build_native_library(print))
    made = {
        name: calls(logits, SamplingOptions(seed=1, **options), library)  # type: ignore[arg-type]
        for name, options in OPTIONS.items()
    }
    ways = ("row", "batch", "torch row", "torch batch", "before")
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, by_way in made.items():
            for way, call in by_way.items():
                times.setdefault((name, way), []).append(milliseconds(call))
    many = f"{num_rows} rows"
    print(f"{'':28} {'row':>8} {many:>9} {'torch':>9} {many:>9} {'before, a row':>14}")
    for name in made:
        row, batch, torch_row, torch_batch, old = (
            statistics.median(times[name, way]) for way in ways
        )
        print(
            f"{name:28} {row:8.3f} {batch:9.2f} {torch_row:9.3f} {torch_batch:9.2f} {old / 4:14.3f}"
        )
    seconds = [milliseconds(lambda: token_log_probs(values[0], 7, 5)) for _ in range(rounds)]
    print(f"{'log-probabilities, 5 likeliest':28} {statistics.median(seconds):6.3f}")


def print_masks(engine_folder: Path) -> None:
    tokenizer = Tokenizer.open(engine_folder)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)
    first = milliseconds(lambda: grammars.begin(_format({"type": "object"})))
    compiling = milliseconds(lambda: grammars.begin(_format(SCHEMA)))
    random, times = np.random.Generator(np.random.PCG64(3)), []
    for _ in range(20):
        (state,) = grammars.begin(_format(SCHEMA))
        for _ in range(100):
            times.append(milliseconds(state.allowed))
            token_id = int(random.choice(np.flatnonzero(state.allowed())))
            if token_id in tokenizer.eos_token_ids:
                break
            state.accept(token_id)
    low, high = np.percentile(times, [50, 99])
    print(f"masks, {tokenizer.vocab_size} tokens: {low:.3f} a token ({high:.3f} of 99 in 100)")
    print(f"compiling a schema {compiling:.1f}, the first with its vocabulary {first:.0f}")


def _format(schema: dict[str, object]):  # type: ignore[no-untyped-def]
    return read_format(json.dumps({"type": "json_schema", "json_schema": {"schema": schema}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.vocabulary} tokens, {arguments.threads} of {os.cpu_count()} CPUs, milliseconds"
    )
    print_draws(arguments.vocabulary, arguments.rows, arguments.rounds)
    print_masks(arguments.engine)


if __name__ == "__main__":
    main()

"""How long it takes to draw tokens, option by option: one row, a batch, and row by row as before.

    out/venv/bin/python benchmarks/sampler_speed.py

Interleaved, for each vocabulary and number of threads; medians of the process' own time, which
others on the machine lengthen less, over the number of threads. By the CPU library, of float32 and
of bfloat16 logits, and by its exact weights alone, which it needs where its near ones cannot
decide; with --torch by torch, which draws where there is no library, and "before": NumPy row by
row, as tokens were drawn until they went in batches. The last lines are of masks: compiling a
format, and its mask for a token.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from legokv.engine.answer import token_log_probs
from legokv.engine.draw import draw_tokens
from legokv.engine.native_draw import drawn_rows
from legokv.engine.sampling import Sampler, SamplingOptions, largest
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
    "top_k 20000": {"temperature": 100.0, "top_k": 20000},
    "top_p and min_p, flat": {"temperature": 100.0, "top_p": 0.95, "min_p": 0.8},
    "top_k 40 and all penalties": {
        "temperature": 0.8,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
    },
    "all options, flat": {
        "temperature": 100.0,
        "top_k": 100000,
        "top_p": 0.95,
        "min_p": 0.8,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
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
    logits: torch.Tensor, options: SamplingOptions, library: NativeLibrary, *, by_torch: bool
) -> dict[str, Callable[[], object]]:
    """One row, all rows, these of bfloat16 and by exact weights; by torch and the code before."""
    vocabulary, random = logits.shape[1], np.random.Generator(np.random.PCG64(2))
    prompt = random.integers(0, vocabulary, PROMPT_TOKENS).tolist()
    draws = [Sampler(options, prompt, row).draw(row) for row in range(len(logits))]
    rows, short = logits.numpy(), logits.bfloat16()
    ways: dict[str, Callable[[], object]] = {
        "row": lambda: draw_tokens(logits, draws[:1], library),
        "batch": lambda: draw_tokens(logits, draws, library),
        "bfloat16": lambda: draw_tokens(short, draws, library),
        "exact": lambda: drawn_rows(library, logits, draws, is_exact=True),
    }
    if not by_torch:
        return ways
    return ways | {
        "torch row": lambda: draw_tokens(logits, draws[:1]),
        "torch batch": lambda: draw_tokens(logits, draws),
        "before, row": lambda: before(rows[0], options, 0.5),
    }


def print_draws(vocabulary: int, num_rows: int, rounds: int, *, by_torch: bool) -> None:
    random = np.random.Generator(np.random.PCG64(1))
    values = random.standard_normal((num_rows, vocabulary), dtype=np.float32) * SPREAD
    logits = torch.from_numpy(values)
    library = NativeLibrary(build_native_library(print))
    made = {
        name: calls(logits, SamplingOptions(seed=1, **options), library, by_torch=by_torch)  # type: ignore[arg-type]
        for name, options in OPTIONS.items()
    }
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, by_way in made.items():
            for way, call in by_way.items():
                times.setdefault((name, way), []).append(milliseconds(call))
    num_threads = torch.get_num_threads()
    print(f"{vocabulary} tokens, {num_rows} rows, {num_threads} threads of {os.cpu_count()} CPUs")
    ways = list(made["greedy"])
    print(f"{'':28}" + "".join(f" {way:>11}" for way in ways))
    for name in made:
        medians = [statistics.median(times[name, way]) / num_threads for way in ways]
        print(f"{name:28}" + "".join(f" {median:11.3f}" for median in medians))
    seconds = [milliseconds(lambda: token_log_probs(logits[0], 7, 5)) for _ in range(rounds)]
    print(f"{'log-probabilities, 5 likeliest':28} {statistics.median(seconds):9.3f}")


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
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32768, 128256])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--torch", action="store_true", help="also by torch and the code before")
    arguments = parser.parse_args()
    for vocabulary, threads in itertools.product(arguments.vocabulary, arguments.threads):
        torch.set_num_threads(threads)
        print_draws(vocabulary, arguments.rows, arguments.rounds, by_torch=arguments.torch)
    print_masks(arguments.engine)


if __name__ == "__main__":
    main()

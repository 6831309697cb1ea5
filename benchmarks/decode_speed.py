"""How long a decoded token takes behind a long context, for one sequence and for several at once.

    out/venv/bin/python benchmarks/decode_speed.py

Alone on the machine: two computing processes on the same cores slow each other down many times.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from legokv import Engine, EngineSettings
from legokv.engine.jobs import GenerateJob
from legokv.engine.request import GenerateRequest

ROOT = Path(__file__).resolve().parents[1]
WARM_TOKENS = 4


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--context-tokens", type=int, default=4000)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def step_seconds(engine: Engine, jobs: list[GenerateJob], num_steps: int) -> list[float]:
    """The steps after all jobs have begun to decode."""
    while min(job.usage.generated_tokens for job in jobs) < WARM_TOKENS:
        if not engine.step():
            raise SystemExit("a sequence ended by itself before it was timed")
    times = []
    for _ in range(num_steps):
        started = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started)
    if min(job.usage.generated_tokens for job in jobs) < WARM_TOKENS + num_steps:
        raise SystemExit("a sequence ended by itself while it was timed")
    return times


def main() -> None:
    arguments = parse_arguments()
    engine = Engine.open(
        arguments.engine,
        settings=EngineSettings(
            num_threads=arguments.threads,
            pool_tokens=2 * arguments.context_tokens + 256 * max(arguments.sequences),
        ),
    )
    random = np.random.Generator(np.random.PCG64(0))
    vocabulary = engine.facts.model.vocab_size
    chunk = engine.compile(random.integers(100, vocabulary, arguments.context_tokens))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    for number in arguments.sequences:
        questions = random.integers(100, vocabulary, (number, 8)).tolist()
        max_tokens = arguments.steps + 2 * WARM_TOKENS + number
        jobs = [engine.submit(GenerateRequest([chunk, ids], max_tokens)) for ids in questions]
        times = step_seconds(engine, jobs, arguments.steps)
        median = statistics.median(times)
        print(
            f"{number} sequences over {arguments.context_tokens} tokens: {median * 1e3:.1f} ms a "
            f"step ({min(times) * 1e3:.1f}-{max(times) * 1e3:.1f}), {number / median:.0f} tokens/s"
        )
        for job in jobs:
            engine.cancel(job)
        while engine.step():
            pass


if __name__ == "__main__":
    main()

"""Where a decode step goes: tables, products, attention, the rest of the forward, and drawing.

    out/venv/bin/python benchmarks/step_split.py --sequences 1 8 32 64 --threads 2

Askers over the same documents, each in an order of its own, or over documents of their own with
--unshared. Steps of each number of sequences, and of each CPU library that --compare names beside
the present one, are taken in turn in one process, so that what else the machine does meets all.
Milliseconds of CPU time, the threads waiting without spinning; of products and attention over the
number of threads, of all else as if one did it: at most what a step takes where nothing else runs.
Medians, the step's with its middle half. Above stand the machine's own limits: bytes it reads and
products it makes.
"""

import argparse
import functools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "passive"

import numpy as np
import torch

from legokv import Engine, EngineSettings, SamplingOptions
from legokv.chunks.chunk import Chunk
from legokv.engine import executor
from legokv.engine.jobs import GenerateJob
from legokv.engine.request import GenerateRequest
from legokv.kernels.cpu import NativeCalls, NativeStep
from legokv.kernels.linear import NativeGate, NativeLinear, NativeTail
from legokv.kernels.native_library import NativeLibrary
from legokv.runners.packed_weights import PackedLinear

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("plan", "begin", "products", "attention", "forward's rest", "draw", "around")
PARALLEL = ("products", "attention")
WARM_TOKENS = 2
QUESTION_TOKENS = 8

Seconds = dict[str, float]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--document-tokens", type=int, default=512)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--unshared", action="store_true", help="each asker has its own documents")
    parser.add_argument("--compare", type=Path, nargs="*", default=[], help="other CPU libraries")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--temperature", type=float, default=0.0)
    return parser.parse_args()


class Clock:
    """CPU seconds of the parts of one step, by wrapping what does them."""

    def __init__(self, num_threads: int) -> None:
        self.seconds: Seconds = defaultdict(float)
        self._num_threads = num_threads

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def measured(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - started

        return measured

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))

    def watch_step(self) -> None:
        self.watch("plan", executor, "plan_step")
        self.watch("run", executor, "run_step")
        self.watch("draw", executor, "draw_each")
        self.watch("attention", NativeStep, "attend")
        for module in (NativeLinear, NativeTail, PackedLinear, NativeGate):
            self.watch("products", module, "forward")

    def calls_of(self, path: Path) -> NativeCalls:
        """A library whose steps' beginnings are watched."""
        library = NativeLibrary(path)
        for name in ("legokv_cpu_begin", "legokv_cpu_advance"):
            self.watch("begin", library.functions, name)
        return NativeCalls(library)

    def step(self, engine: Engine) -> Seconds:
        """Each part of one step, and the whole."""
        self.seconds.clear()
        started = time.process_time()
        engine.step()
        whole, parts = time.process_time() - started, self.seconds
        parallel = sum(parts[name] for name in PARALLEL)
        split = {
            **parts,
            "forward's rest": parts["run"] - parts["begin"] - parallel,
            "around": whole - parts["plan"] - parts["run"] - parts["draw"],
            "step": whole - parallel + parallel / self._num_threads,
        }
        return split | {name: parts[name] / self._num_threads for name in PARALLEL}


def limits() -> str:
    """Bytes a second read by all threads, and bfloat16 products a second, the best of some."""
    wide, square = torch.ones(2**26), torch.ones(1024, 1024, dtype=torch.bfloat16)
    reading = min(_seconds(wide.sum) for _ in range(20))
    multiplying = min(_seconds(lambda: square @ square) for _ in range(20))
    gigabytes = wide.numel() * wide.element_size() / reading / 1e9
    return f"{gigabytes:.0f} GB/s read, {2 * 1024**3 / multiplying / 1e9:.0f} GFLOP/s in bfloat16"


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextmanager
def only(engine: Engine, jobs: Sequence[GenerateJob]) -> Iterator[None]:
    """The other jobs are set aside: a step computes these alone."""
    all_jobs = engine.executor._running
    if any(job not in all_jobs for job in jobs):
        raise SystemExit("a sequence ended by itself before it was timed")
    engine.executor._running = list(jobs)
    try:
        yield
    finally:
        engine.executor._running = all_jobs


def decoding_jobs(engine: Engine, arguments: argparse.Namespace, most_steps: int) -> Any:
    """As many jobs as the largest step has, all of them decoding, for so many steps more."""
    dice = np.random.default_rng(0)
    vocabulary = engine.facts.model.vocab_size

    def compiled() -> list[Chunk]:
        size = (arguments.documents, arguments.document_tokens)
        return [engine.compile(ids) for ids in dice.integers(100, vocabulary, size)]

    most = max(arguments.sequences)
    # Before any job, which would go on while others' documents are compiled.
    documents = [compiled() for _ in range(most if arguments.unshared else 1)]
    jobs = []
    top_p = 0.95 if arguments.temperature else 1.0
    sampling = SamplingOptions(temperature=arguments.temperature, top_p=top_p, seed=1)
    for number in range(most):
        chunks = documents[number % len(documents)]
        order = [chunks[place] for place in dice.permutation(len(chunks))]
        question = dice.integers(100, vocabulary, QUESTION_TOKENS).tolist()
        request = GenerateRequest([*order, question], most_steps, sampling=sampling)
        jobs.append(engine.submit(request))
    while min(job.usage.generated_tokens for job in jobs) < WARM_TOKENS:
        if not engine.step():
            raise SystemExit("a sequence ended by itself before it was timed")
    return jobs


def main() -> None:
    arguments = parse_arguments()
    most, documents = max(arguments.sequences), arguments.documents
    num_libraries = 1 + len(arguments.compare)
    num_timed = (arguments.rounds + 1) * len(arguments.sequences) * num_libraries
    most_steps = 3 * num_timed + 2 * most + 64
    pool_tokens = documents * arguments.document_tokens * (most if arguments.unshared else 1)
    pool_tokens += most * (most_steps + 64 + 16 * documents)
    engine = Engine.open(
        arguments.engine,
        settings=EngineSettings(
            dtype=arguments.dtype,
            num_threads=arguments.threads,
            pool_tokens=pool_tokens,
            host_bytes=0,
        ),
    )
    attention: Any = engine.runner.attention  # type: ignore[attr-defined]
    if attention.library is None:
        raise SystemExit(
            f"the engine attends by {attention.description}, and the CPU library's steps are timed "
            "here: run build/build_native.py"
        )
    print(f"{arguments.threads} threads, {attention.description}; {limits()}")
    jobs = decoding_jobs(engine, arguments, most_steps)
    clock = Clock(arguments.threads)
    clock.watch_step()
    paths = [attention.library.path, *arguments.compare]
    libraries = {path.parent.name: clock.calls_of(path) for path in paths}
    taken: dict[tuple[str, int], list[Seconds]] = defaultdict(list)
    for round_number in range(arguments.rounds + 1):
        for number in arguments.sequences:
            for name, calls in libraries.items():
                attention.calls = calls
                with only(engine, jobs[:number]):
                    # The first puts those first that waited, the second goes on in their order.
                    for _ in range(2):
                        engine.step()
                    split = clock.step(engine)
                if round_number:
                    taken[name, number].append(split)
    for name in libraries:
        report(name, {n: steps for (of, n), steps in taken.items() if of == name})


def report(library: str, taken: dict[int, list[Seconds]]) -> None:
    first = statistics.median(each["step"] for each in next(iter(taken.values())))
    print(f"\nlibrary {library}\n")
    columns = ("sequences", "step", "times one's", "tokens a second, times one's", *PARTS)
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for number, steps in taken.items():
        wholes = sorted(each["step"] * 1e3 for each in steps)
        quarter, middle = len(wholes) // 4, statistics.median(wholes)
        cells = [
            str(number),
            f"{middle:.1f} ({wholes[quarter]:.1f}-{wholes[-1 - quarter]:.1f})",
            f"{middle / first / 1e3:.2f}",
            f"{number * first * 1e3 / middle:.1f}",
            *(f"{statistics.median(each[name] for each in steps) * 1e3:.1f}" for name in PARTS),
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

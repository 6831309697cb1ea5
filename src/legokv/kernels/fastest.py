"""Which build of the native attention, and how many threads, are fastest: measured, not guessed.

The figures lie beside the compiled library, for each processor and type. So they are measured once,
and an answer keeps its bits over a restart.
"""

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from legokv.kernels.cpu import NativeCalls, NativeStep, StepShape
from legokv.kernels.gpu import AttentionTables
from legokv.kernels.native_library import InstructionSet

NUM_ROUNDS = 7
# A piece of a prompt, and tokens that are decoded, over as many keys as a tile's part and more.
PIECE_TOKENS, NUM_DECODED, NUM_KEYS, PAGE_SIZE = 192, 8, 704, 16
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 6, 2, 64
NUM_LAYERS = 8
THREADS_MARGIN = 0.05

Milliseconds = dict[InstructionSet, float]

log = logging.getLogger(__name__)


def measured_forms(calls: NativeCalls, dtype: torch.dtype) -> Milliseconds:
    """What a small layer takes in each build of `calls` that can do `dtype`, the fastest first.

    As it was measured first on this processor, where that could be kept.
    """
    candidates = _candidates(calls, dtype)
    if len(candidates) == 1:
        return {candidates[0]: 0.0}

    def measure() -> dict[str, float]:
        figures = _measured(calls, dtype, candidates)
        return {each.name.lower(): value for each, value in figures.items()}

    place = calls.library.path.with_name(f"fastest-{_processor_digest()}-{str(dtype)[6:]}.json")
    figures = _measured_once(place, [each.name.lower() for each in candidates], measure)
    ordered = sorted(figures.items(), key=lambda item: item[1])
    return {InstructionSet[name.upper()]: value for name, value in ordered}


def measured_threads(
    calls: NativeCalls, dtype: torch.dtype, instruction_set: InstructionSet
) -> dict[int, float]:
    """What small layers take on all of torch's threads and on one fewer, the better first.

    Milliseconds, as they were measured first on this processor with so many threads. One fewer is
    better where a core is not all the process': then each layer would wait for the thread there.
    It must show by more than the noise, twice. While the machine's cores are busy nothing is judged
    or kept: all threads are taken.
    """
    most = torch_threads()
    if most == 1:
        return {1: 0.0}
    name = f"num_threads-{_processor_digest()}-{str(dtype)[6:]}-{most}.json"
    place = calls.library.path.with_name(name)
    names = [str(most), str(most - 1)]
    if _read(place, names) is None and _cores_are_busy(most):
        return {most: 0.0}

    def is_better(figures: dict[str, float]) -> bool:
        return figures[str(most - 1)] < (1 - THREADS_MARGIN) * figures[str(most)]

    def measure_one() -> dict[str, float]:
        seconds = _seconds_of_layers(calls, dtype, instruction_set, (most, most - 1))
        return {str(count): round(value * 1e3, 3) for count, value in seconds.items()}

    def measure() -> dict[str, float]:
        figures = measure_one()
        # Of two that disagree the second is kept, which says: all threads.
        return measure_one() if is_better(figures) else figures

    figures = _measured_once(place, names, measure)
    both = {count: figures[str(count)] for count in (most, most - 1)}
    return dict(sorted(both.items(), reverse=not is_better(figures)))


def _cores_are_busy(num_threads: int) -> bool:
    """Whether as many tasks run as there are cores; both are the whole machine's."""
    return os.getloadavg()[0] >= (os.cpu_count() or num_threads)


@cache
def torch_threads() -> int:
    """Torch's number of threads before any was chosen here."""
    return torch.get_num_threads()


def able_forms(calls: NativeCalls, dtype: torch.dtype) -> list[InstructionSet]:
    """The builds of `calls` that can do `dtype` on this processor."""
    return [each for each in calls.instruction_sets() if _can_do(each, dtype)]


def _candidates(calls: NativeCalls, dtype: torch.dtype) -> list[InstructionSet]:
    """Those for real work: PORTABLE only where there is no other."""
    able = able_forms(calls, dtype)
    return able[1:] or able


def _can_do(instruction_set: InstructionSet, dtype: torch.dtype) -> bool:
    if instruction_set == InstructionSet.SOFTWARE_TILES:
        return False
    return dtype == torch.bfloat16 or not instruction_set.bfloat16_only


@dataclass(frozen=True)
class _Layer:
    """A layer over a piece of a prompt and some decodes, numbers drawn."""

    shape: StepShape
    q: Tensor
    k: Tensor
    v: Tensor
    pool: Tensor

    @classmethod
    def of(cls, dtype: torch.dtype) -> "_Layer":
        dice = torch.Generator().manual_seed(0)
        num_tokens, num_pages = PIECE_TOKENS + NUM_DECODED, NUM_KEYS // PAGE_SIZE
        normal = partial(torch.randn, generator=dice)
        return cls(
            StepShape(num_pages, PAGE_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, dtype),
            normal(num_tokens, NUM_HEADS, HEAD_SIZE).to(dtype),
            normal(num_tokens, NUM_KV_HEADS, HEAD_SIZE).to(dtype),
            normal(num_tokens, NUM_KV_HEADS, HEAD_SIZE).to(dtype),
            normal(num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_SIZE).to(dtype),
        )

    def step(
        self, calls: NativeCalls, instruction_set: InstructionSet, num_threads: int = 1
    ) -> AbstractContextManager[NativeStep]:
        return calls.step(
            _tables(self.shape.num_pool_pages),
            self.shape,
            num_threads=num_threads,
            instruction_set=instruction_set,
        )

    def seconds(self, step: NativeStep, clock: Callable[[], float], num_layers: int = 1) -> float:
        started = clock()
        for _ in range(num_layers):
            step.attend(self.q, self.k, self.v, self.pool)
        return clock() - started


def _measured(
    calls: NativeCalls, dtype: torch.dtype, candidates: list[InstructionSet]
) -> Milliseconds:
    """The best of some rounds, interleaved, by the thread's own time: others may be at work."""
    layer, seconds = _Layer.of(dtype), {each: float("inf") for each in candidates}
    with ExitStack() as stack:
        begun = {each: stack.enter_context(layer.step(calls, each)) for each in candidates}
        for _ in range(NUM_ROUNDS):
            for each, step in begun.items():
                seconds[each] = min(seconds[each], layer.seconds(step, time.thread_time))
    return {each: round(value * 1e3, 3) for each, value in seconds.items()}


def _seconds_of_layers(
    calls: NativeCalls,
    dtype: torch.dtype,
    instruction_set: InstructionSet,
    counts: Sequence[int],
) -> dict[int, float]:
    """The best of some rounds, interleaved, by the wall clock: who shares a core counts."""
    layer, seconds = _Layer.of(dtype), {count: float("inf") for count in counts}
    for _ in range(NUM_ROUNDS):
        for count in counts:
            with layer.step(calls, instruction_set, count) as step:
                # OpenMP makes another team of threads first.
                layer.seconds(step, time.perf_counter)
                one = layer.seconds(step, time.perf_counter, NUM_LAYERS)
            seconds[count] = min(seconds[count], one)
    return seconds


def _tables(num_pages: int) -> AttentionTables:
    """A piece at the end of some keys, and single tokens behind the same; nothing is written."""
    positions = [*range(NUM_KEYS - PIECE_TOKENS, NUM_KEYS), *[NUM_KEYS - 1] * NUM_DECODED]
    starts = [0, *range(PIECE_TOKENS, PIECE_TOKENS + NUM_DECODED + 1)]
    rows = [(page, 0, page * PAGE_SIZE, PAGE_SIZE) for page in range(num_pages)]
    placed = torch.tensor(positions, dtype=torch.int32)
    return AttentionTables(
        positions=placed,
        key_positions=placed,
        slots=torch.full_like(placed, -1),
        query_start=torch.tensor(starts, dtype=torch.int32),
        pages=torch.tensor([rows] * (NUM_DECODED + 1), dtype=torch.int32),
        inv_freq=10000.0 ** -(torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE),
        scale=HEAD_SIZE**-0.5,
    )


def _processor_digest() -> str:
    """The processor's name and abilities, the same wherever it is the same."""
    facts = [platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        first, _, _ = cpuinfo.read_text(errors="replace").partition("\n\n")
        facts += [line for line in first.splitlines() if line.startswith(("model name", "flags"))]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _measured_once(
    place: Path, names: Sequence[str], measure: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """The figures kept at `place`, those that `measure` gives if there are none of these names."""
    figures = _read(place, names)
    if figures is None:
        own = measure()
        _keep(place, own)
        figures = _read(place, names) or own
    return figures


def _read(place: Path, names: Sequence[str]) -> dict[str, float] | None:
    """The figures kept there; None if there are none, or not of these names."""
    try:
        stored = json.loads(place.read_text())
        figures = {name: float(value) for name, value in stored.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return figures if set(figures) == set(names) else None


def _keep(place: Path, figures: dict[str, float]) -> None:
    """Whole, unless another process was first; where nothing can be written, for this time only."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=place.parent, prefix=".fastest-") as file:
            file.write(json.dumps(figures))
            file.flush()
            if place.exists() and _read(place, list(figures)) is None:
                place.unlink()  # of another library, or broken
            os.link(file.name, place)
    except FileExistsError:
        return
    except OSError as error:
        log.info("what is fastest is measured at each start, since %s", error)

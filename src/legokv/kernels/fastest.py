"""Which build of the native attention is fastest on this processor: measured, not guessed.

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
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from legokv.kernels.cpu import NativeCalls, StepShape
from legokv.kernels.gpu import AttentionTables
from legokv.kernels.native_library import InstructionSet

NUM_ROUNDS = 7
# A piece of a prompt, and tokens that are decoded, over as many keys as a tile's part and more.
PIECE_TOKENS, NUM_DECODED, NUM_KEYS, PAGE_SIZE = 192, 8, 704, 16
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 6, 2, 64

Milliseconds = dict[InstructionSet, float]

log = logging.getLogger(__name__)


def measured_forms(calls: NativeCalls, dtype: torch.dtype) -> Milliseconds:
    """What a small layer takes in each build of `calls` that can do `dtype`, the fastest first.

    As it was measured first on this processor, where that could be kept.
    """
    candidates = _candidates(calls, dtype)
    if len(candidates) == 1:
        return {candidates[0]: 0.0}
    place = calls.library.path.with_name(f"fastest-{_processor_digest()}-{str(dtype)[6:]}.json")
    figures = _read(place, candidates)
    if figures is None:
        own = _measured(calls, dtype, candidates)
        _keep(place, own)
        figures = _read(place, candidates) or own
    return dict(sorted(figures.items(), key=lambda item: item[1]))


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


def _measured(
    calls: NativeCalls, dtype: torch.dtype, candidates: list[InstructionSet]
) -> Milliseconds:
    """The best of some rounds, interleaved, by the thread's own time: others may be at work."""
    dice = torch.Generator().manual_seed(0)
    num_tokens = PIECE_TOKENS + NUM_DECODED
    normal = partial(torch.randn, generator=dice)
    q = normal(num_tokens, NUM_HEADS, HEAD_SIZE).to(dtype)
    k, v = (normal(num_tokens, NUM_KV_HEADS, HEAD_SIZE).to(dtype) for _ in range(2))
    num_pages = NUM_KEYS // PAGE_SIZE
    pool = normal(num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_SIZE).to(dtype)
    shape = StepShape(num_pages, PAGE_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, dtype)
    seconds = {each: float("inf") for each in candidates}
    with ExitStack() as stack:
        begun = {
            each: stack.enter_context(
                calls.step(_tables(num_pages), shape, num_threads=1, instruction_set=each)
            )
            for each in candidates
        }
        for _ in range(NUM_ROUNDS):
            for each, step in begun.items():
                started = time.thread_time()
                step.attend(q, k, v, pool)
                seconds[each] = min(seconds[each], time.thread_time() - started)
    return {each: round(value * 1e3, 3) for each, value in seconds.items()}


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


def _read(place: Path, candidates: list[InstructionSet]) -> Milliseconds | None:
    """The figures kept there; None if there are none, or not of these builds."""
    try:
        stored = json.loads(place.read_text())
        figures = {InstructionSet[name.upper()]: float(value) for name, value in stored.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return figures if set(figures) == set(candidates) else None


def _keep(place: Path, figures: Milliseconds) -> None:
    """Whole, unless another process was first; where nothing can be written, for this time only."""
    text = json.dumps({each.name.lower(): value for each, value in figures.items()})
    try:
        with tempfile.NamedTemporaryFile("w", dir=place.parent, prefix=".fastest-") as file:
            file.write(text)
            file.flush()
            if place.exists() and _read(place, list(figures)) is None:
                place.unlink()  # of another library, or broken
            os.link(file.name, place)
    except FileExistsError:
        return
    except OSError as error:
        log.info("which attention is fastest is measured at each start, since %s", error)

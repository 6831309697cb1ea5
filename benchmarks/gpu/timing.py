"""Timing interleaved calls: on a GPU as CUDA graphs between events, on a CPU by the clock."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]
UNCOUNTED = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    low: float
    high: float
    rounds: int


def interleaved(
    calls: Mapping[str, Call], device: torch.device, rounds: int, calls_in_one: int = 1
) -> dict[str, Timing]:
    """One call of each a round, on a GPU after two not counted; divided by `calls_in_one`."""
    uncounted = UNCOUNTED if device.type == "cuda" else 0
    clocks = {name: _clock(call, device) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(uncounted + rounds):
        for name, clock in clocks.items():
            took = clock() / calls_in_one
            if number >= uncounted:
                seconds[name].append(took)
    return {name: timing_of(taken) for name, taken in seconds.items()}


def eager(call: Call, device: torch.device, rounds: int) -> Timing:
    """Seconds from the call to the device's having finished, launches included."""

    def timed() -> float:
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    uncounted = UNCOUNTED if device.type == "cuda" else 0
    return timing_of([timed() for _ in range(uncounted + rounds)][uncounted:])


def timing_of(seconds: list[float]) -> Timing:
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def _clock(call: Call, device: torch.device) -> Callable[[], float]:
    return _cuda_clock(call) if device.type == "cuda" else _host_clock(call)


def _host_clock(call: Call) -> Callable[[], float]:
    def timed() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return timed


def _cuda_clock(call: Call) -> Callable[[], float]:
    """Seconds on the device. A graph, as launching from Python takes longer than short kernels."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(_kept: object = kept) -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return timed

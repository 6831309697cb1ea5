"""Time to first token by method: against prompt length, and against link tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cost.cases import QUESTION_TOKENS, Case, case, method, plain_prefill
from benchmarks.record.clock import TimeLimit, seconds_of
from benchmarks.record.journal import Journal
from benchmarks.record.results import Row
from benchmarks.record.statistics import spread
from legokv import Engine

FIXED_CHUNK = "length, fixed chunk"
FIXED_COUNT = "length, fixed count"
LINK_TOKENS = "link tokens"
CHUNK_TOKENS = 512
NUM_CHUNKS = 8
SWEPT = ("full", "prefix", "legolink-16", "legolink-2", "naive")
BY_K = tuple(f"legolink-{k}" for k in (1, 2, 4, 8, 16, 32, 64))
OTHER_CHUNKS = ("whole-prefix", "legolink-0")
AT_ONE_PLACE = ("full", "prefix", *OTHER_CHUNKS, "naive", *BY_K)


@dataclass(frozen=True)
class Point:
    """One prompt of a sweep and the methods that prefill it. `x` is what the sweep varies."""

    experiment: str
    x: int
    num_chunks: int
    chunk_tokens: int
    methods: tuple[str, ...]


def points(lengths: Sequence[int], chunk_tokens: int = CHUNK_TOKENS) -> list[Point]:
    """All prompts to measure: two sweeps over `lengths`, and one prompt with every method."""
    counts = {length: max(length // chunk_tokens, 1) for length in lengths}
    return [
        Point(LINK_TOKENS, NUM_CHUNKS * chunk_tokens, NUM_CHUNKS, chunk_tokens, AT_ONE_PLACE),
        *(Point(FIXED_CHUNK, n, counts[n], chunk_tokens, SWEPT) for n in lengths),
        *(Point(FIXED_COUNT, n, NUM_CHUNKS, n // NUM_CHUNKS, SWEPT) for n in lengths),
    ]


def measure(
    engine: Engine, journal: Journal, todo: Sequence[Point], rounds: int, limit: TimeLimit
) -> None:
    """Every method of every point once a round, interleaved; stops between calls at the limit."""
    for number in range(rounds):
        for point in todo:
            keys = {name: f"{point.experiment}/{point.x}/{name}/{number}" for name in point.methods}
            if all(key in journal for key in keys.values()):
                continue
            prompt = case(engine, point.num_chunks, point.chunk_tokens)
            for name, key in keys.items():
                if limit.over:
                    return
                if key not in journal:
                    journal.add(key, _timed(engine, prompt, name))


def _timed(engine: Engine, prompt: Case, name: str) -> dict[str, Any]:
    """One call of a method, then of its limit: as many plain tokens as it computed."""
    run = method(name)
    # Once before, uncounted, so that the chunks it needs are in the pool.
    warm = run if name in OTHER_CHUNKS else method("naive")
    warm(engine, prompt)
    found = []
    seconds = seconds_of(lambda: found.append(run(engine, prompt)))
    usage = found[0].usage
    computed = usage.recomputed_tokens + usage.fresh_tokens
    plain = plain_prefill(engine, computed)
    limit_seconds = seconds if name == "full" else seconds_of(plain)
    return {
        "seconds": seconds,
        "limit_seconds": limit_seconds,
        "computed_tokens": computed,
        "recomputed_tokens": usage.recomputed_tokens,
        "compiled_tokens": usage.compiled_tokens,
    }


def rows(journal: Journal, todo: Iterable[Point]) -> list[Row]:
    """A row a point and method: median and spread, its limit, and its tokens."""
    made = []
    entries = journal.entries()
    for point in todo:
        for name in point.methods:
            start = f"{point.experiment}/{point.x}/{name}/"
            found = [value for key, value in entries.items() if key.startswith(start)]
            # A chunk compiled within the measured call would be charged to the link.
            found = [value for value in found if not value["compiled_tokens"]]
            if found:
                made.append(_row(point, name, found))
    return made


def _row(point: Point, name: str, found: list[dict[str, Any]]) -> Row:
    return {
        "experiment": point.experiment,
        "method": name,
        "x": point.x,
        "unit": "seconds",
        **spread([value["seconds"] for value in found]).as_row(),
        "limit_median": spread([value["limit_seconds"] for value in found]).median,
        "computed_tokens": found[0]["computed_tokens"],
        "recomputed_tokens": found[0]["recomputed_tokens"],
        "prompt_tokens": point.num_chunks * point.chunk_tokens + QUESTION_TOKENS,
        "num_chunks": point.num_chunks,
    }

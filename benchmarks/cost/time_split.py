"""Where the time to a second token goes: load, link, first decode; by the tier chunks come from.

Lookup is the server's: benchmarks/serving measures it.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.cost.cases import Case, case
from benchmarks.record.clock import TimeLimit
from benchmarks.record.journal import Journal
from benchmarks.record.results import Row
from benchmarks.record.statistics import spread
from legokv import Engine, EngineSettings
from legokv.engine.jobs import GenerateJob
from legokv.engine.request import Finished, GenerateRequest, Token

EXPERIMENT = "time split"
PARTS = ("queue", "load", "compile", "link", "first decode")
TIERS = ("pool", "host", "disk")


def measure(
    engine_path: Path, journal: Journal, chunk_tokens: int, rounds: int, limit: TimeLimit
) -> None:
    """For each tier an engine in which the chunks are in that tier when the request comes."""
    wanted = [f"{EXPERIMENT}/{t}/{n}" for t in TIERS for n in range(rounds)]
    if limit.over or all(key in journal for key in wanted):
        return
    with tempfile.TemporaryDirectory() as cache_dir:
        for tier in TIERS:
            engine = _engine(engine_path, tier, chunk_tokens, cache_dir)
            _measure_tier(engine, journal, tier, (chunk_tokens, rounds))


def _engine(path: Path, tier: str, chunk_tokens: int, cache_dir: str) -> Engine:
    """Except for the tier "pool": room for one prompt, so that another drives its chunks down."""
    return Engine.open(
        path,
        settings=EngineSettings(
            pool_tokens=256 + (18 if tier == "pool" else 9) * chunk_tokens,
            cache_dir=cache_dir,
            host_bytes=0 if tier == "disk" else 2**31,
        ),
    )


def _measure_tier(engine: Engine, journal: Journal, tier: str, size: tuple[int, int]) -> None:
    chunk_tokens, rounds = size
    asked = _persistent(engine, case(engine, 8, chunk_tokens))
    driving = _persistent(engine, case(engine, 8, chunk_tokens + 1))
    _split(engine, asked)
    for number in range(rounds):
        if tier != "pool":
            _split(engine, driving)
        key = f"{EXPERIMENT}/{tier}/{number}"
        if key not in journal:
            journal.add(key, _split(engine, asked))


def _persistent(engine: Engine, prompt: Case) -> Case:
    """The same prompt over chunks that go to the lower tiers."""
    return Case(tuple(engine.chunk(chunk.token_ids) for chunk in prompt.chunks), prompt.question)


def _split(engine: Engine, asked: Case) -> dict[str, float]:
    job = engine.submit(GenerateRequest([*asked.chunks, asked.question], 2))
    came, usage = _events(engine, job)
    return {
        "queue": usage.usage.queue_seconds,
        "load": usage.usage.load_seconds,
        "compile": usage.usage.compile_seconds,
        "link": usage.usage.link_seconds,
        "first decode": came[1] - came[0],
        "compiled_tokens": usage.usage.compiled_tokens,
    }


def _events(engine: Engine, job: GenerateJob) -> tuple[list[float], Finished]:
    came: list[float] = []
    for event in engine.results(job):
        if isinstance(event, Token):
            came.append(time.perf_counter())
        if isinstance(event, Finished):
            return came, event
    raise AssertionError("a job's events end with Finished")


def rows(journal: Journal) -> list[Row]:
    made = []
    entries = journal.entries()
    for tier in TIERS:
        start = f"{EXPERIMENT}/{tier}/"
        found = [value for key, value in entries.items() if key.startswith(start)]
        for part in PARTS if found else ():
            made.append(
                {"experiment": EXPERIMENT, "method": part, "x": tier, "unit": "seconds"}
                | spread([value[part] for value in found]).as_row()
                | {"compiled_tokens": max(value["compiled_tokens"] for value in found)}
            )
    return made

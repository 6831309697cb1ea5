"""One method on one server: every rate asked for, then the highest that holds the bound."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.record.clock import TimeLimit
from benchmarks.record.journal import Journal
from benchmarks.record.results import Row
from benchmarks.serving.drive import Target, decay, drive, summary
from benchmarks.serving.highest_rate import RateRange, highest_rate
from benchmarks.serving.methods import Corpus, method
from benchmarks.serving.server import register, serving
from benchmarks.serving.setups import Setup
from benchmarks.serving.workload import Arrival, arrivals

SATURATED = 3.0
"""Past this many times the bound a higher rate only waits longer: it is not tried."""


class OutOfTime(Exception):
    """The minutes are over; what was measured is kept."""


@dataclass(frozen=True)
class Size:
    """How much is asked in one probe, and what bound is looked for."""

    engine: Path
    threads: int
    document_tokens: int
    max_tokens: int
    min_requests: int
    probe_seconds: float
    bound_seconds: float

    def num_requests(self, rate: float) -> int:
        return max(self.min_requests, round(rate * self.probe_seconds))


@dataclass
class Served:
    """A method's server, started when the first probe needs it, its documents registered."""

    setup: Setup
    method: str
    size: Size
    journal: Journal
    limit: TimeLimit
    _open: ExitStack = field(default_factory=ExitStack)
    _target: Target | None = None

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def probe(self, rate: float) -> dict[str, Any]:
        """The summary of one run at `rate`; from the journal if it was run before."""
        key = f"{self.setup.name}/{self.method}/{rate:.4g}"
        if key in self.journal:
            return dict(self.journal.get(key))
        if self.limit.over:
            raise OutOfTime(f"no time left for {key}")
        requests = arrivals(self.setup.workload, rate, self.size.num_requests(rate))
        answers = drive(self.target, requests)
        found = {"rate": rate, **summary(answers), "cached_share_by_quarter": decay(answers)}
        self.journal.add(key, found)
        print(f"{key}: p90 TTFT {found.get('time_to_first_token_p90', float('inf')):.2f} s")
        return found

    @property
    def target(self) -> Target:
        if self._target is None:
            folder = self._open.enter_context(tempfile.TemporaryDirectory())
            settings = {**self.setup.server, "num_threads": self.size.threads}
            url = self._open.enter_context(serving(self.size.engine, Path(folder), settings))
            corpus = self._corpus(url)
            made = Target(url, corpus, method(self.method), self.size.max_tokens)
            self._warm_up(made)
            self._target = made
        return self._target

    def _corpus(self, url: str) -> Corpus:
        if self.method == "prefix":
            return Corpus((), self.size.document_tokens)
        return register(url, self.setup.workload.num_documents, self.size.document_tokens)

    def _warm_up(self, target: Target) -> None:
        """One request at a time over every document: a prefix cache has seen each stand first."""
        everyone = range(self.setup.workload.num_documents)
        for number in everyone if self.method == "prefix" else (0, 1):
            drive(target, [Arrival(0.0, (number,), 10**6 + number)])


def measure(served: Served, rates: list[float], num_probes: int) -> RateRange:
    """All `rates` up to saturation, then `num_probes` more towards the highest that holds."""
    size = served.size
    held, broke = 0.0, float("inf")
    for rate in sorted(rates):
        seconds = _p90(served.probe(rate))
        if seconds <= size.bound_seconds:
            held = rate
        elif held < rate < broke:
            broke = rate
        if seconds > SATURATED * size.bound_seconds:
            break
    known = RateRange(held, broke)
    return highest_rate(lambda r: _p90(served.probe(r)), size.bound_seconds, known, num_probes)


def _p90(found: dict[str, Any]) -> float:
    """Infinite where requests were refused: a refusal keeps no bound."""
    refused = found["refused"] or "time_to_first_token_p90" not in found
    return float("inf") if refused else float(found["time_to_first_token_p90"])


def rows(journal: Journal, setups: list[Setup], bound_seconds: float) -> list[Row]:
    """A row a probe, and a row a method with the highest rate that held the bound."""
    made: list[Row] = []
    for setup in setups:
        for name in setup.methods:
            start = f"{setup.name}/{name}/"
            probes = [v for key, v in journal.entries().items() if key.startswith(start)]
            labels = {"set": setup.name, "method": name}
            ordered = sorted(probes, key=lambda probe: float(probe["rate"]))
            made += [{"experiment": "rate", **labels, **probe} for probe in ordered]
            if probes:
                made.append(
                    {"experiment": "highest rate", **labels, **_held(probes, bound_seconds)}
                )
    return made


def _held(probes: list[dict[str, Any]], bound_seconds: float) -> dict[str, Any]:
    held = [probe["rate"] for probe in probes if _p90(probe) <= bound_seconds]
    broke = [probe["rate"] for probe in probes if _p90(probe) > bound_seconds]
    best = max((rate for rate in held if rate < min(broke, default=float("inf"))), default=0.0)
    return {"bound_seconds": bound_seconds, "held": best, "broke": min(broke, default=None)}

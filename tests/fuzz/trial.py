"""A server under drawn requests, beside a client whose answers must not change."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from fuzz.bystander import Bystander
from fuzz.drawing import Drawing
from fuzz.faults import Faults
from fuzz.judging import fault_of
from fuzz.request import Request, saved
from fuzz.sending import Address, Sender
from fuzz.watching import Footprint, bad_lines, footprint, runs

NUM_CLIENTS = 3


@dataclass(frozen=True)
class Trial:
    """What is done: each client sends what `seed` draws for it until one of the two is over."""

    seed: int
    seconds: float = math.inf
    num_requests: float = math.inf
    """Of each client. The same trial then sends the same requests, however fast the machine is."""
    settled_share: float = 0.2
    """After so much of it, what Python and Triton allocate once is allocated."""
    with_kills: bool = False
    """What fails while a process starts anew is no fault then; a wrong answer always is."""

    def turns(self, settled: threading.Event) -> Iterator[int]:
        """Of one client, a number a request; `settled` is set when it has done its share of them,
        or will do no more."""
        started = time.monotonic()
        try:
            for sent in count():
                seconds = time.monotonic() - started
                share = max(seconds / self.seconds, sent / self.num_requests)
                if share >= self.settled_share:
                    settled.set()
                if share >= 1:
                    return
                yield sent
        finally:
            settled.set()


@dataclass
class Report:
    """What a trial saw. `faults` are sentences with the requests they came of."""

    seed: int
    seconds: float = 0
    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, Request]] = field(default_factory=list)
    bystander_answers: int = 0
    wrong_answers: list[str] = field(default_factory=list)
    failed_answers: list[str] = field(default_factory=list)
    log_lines: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    latest: deque[Request] = field(default_factory=lambda: deque(maxlen=20))
    """Sent last: of a server that ended, one of them ended it."""
    settled: Footprint | None = None
    end: Footprint | None = None

    def lost_processes(self) -> list[str]:
        """Names of processes that were there at the start and are not any more."""
        assert self.settled
        assert self.end
        return [n for pid, n in self.settled.processes.items() if pid not in self.end.processes]

    def growth(self) -> dict[str, tuple[int, int]]:
        """Of each process that stayed: bytes and descriptors more than when it had settled."""
        assert self.settled
        assert self.end
        before, after = self.settled, self.end
        return {
            name: (
                after.memory[name] - before.memory[name],
                after.descriptors[name] - before.descriptors[name],
            )
            for name in after.memory
            if name in before.memory
        }


def run_trial(address: Address, pid: int, log: Path, trial: Trial) -> Report:
    """Do the trial to the server of process `pid`, which is idle before it."""
    report, lock, settled = Report(trial.seed), threading.Lock(), threading.Event()
    faults = Faults(pid, trial.seed) if trial.with_kills else None
    bystander = Bystander(address.http)
    started = time.monotonic()

    def client(number: int) -> None:
        drawing = Drawing(trial.seed * 1000 + number, bystander.ids)
        sender = Sender(address)
        for _ in trial.turns(settled):
            if not runs(pid):
                break
            request = drawing.request()
            with lock:
                report.latest.append(request)
            outcome = sender.send(request)
            recovering = faults is not None and faults.recovering()
            fault = None if recovering else fault_of(request, outcome)
            if drawing.dice.random() < 0.05:
                sender.close()  # as a client that goes, with its connection
            with lock:
                report.requests[type(request).__name__] += 1
                report.statuses[outcome.status] += 1
                if fault:
                    report.faults.append((fault, request))
        sender.close()

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(NUM_CLIENTS)]
    bystander.start()
    if faults:
        faults.start()
    for thread in threads:
        thread.start()
    settled.wait()
    report.settled = footprint(pid)
    for thread in threads:
        thread.join()
    if faults:
        faults.stop()
        report.kills = faults.seen
    bystander.stop()
    report.seconds = time.monotonic() - started
    report.end = rested(pid, report.settled)
    report.bystander_answers = bystander.answers
    report.wrong_answers, report.failed_answers = bystander.wrong, bystander.failures
    report.log_lines = bad_lines(log)
    return report


REST_SECONDS = 60
"""In which connections that were left are given back."""
_FEW_DESCRIPTORS = 4
"""Of a process more than when it had settled: a log that turns, a probe under way."""


def rested(pid: int, settled: Footprint) -> Footprint:
    """As soon as processes hold no more descriptors than before, or after REST_SECONDS."""
    deadline = time.monotonic() + REST_SECONDS
    while True:
        now, before = footprint(pid), settled.descriptors
        more = [held - before.get(name, held) for name, held in now.descriptors.items()]
        if max(more, default=0) <= _FEW_DESCRIPTORS or time.monotonic() > deadline:
            return now
        time.sleep(0.5)


def keep(report: Report, folder: Path) -> list[Path]:
    """Write each fault's request into the folder, with what was wrong; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    last = [("among the last before a process ended", request) for request in report.latest]
    kept = [*report.faults[:50], *(last if report.lost_processes() else [])]
    for number, (why, request) in enumerate(kept):
        file = folder / f"seed-{report.seed}-{number}.json"
        file.write_text(saved(request, why) + "\n")
        files.append(file)
    return files


def table(report: Report) -> str:
    """The report in Markdown, a line a thing that is counted."""
    growth = report.growth()
    bystander = (
        f"{report.bystander_answers}, of them other than idle: {len(report.wrong_answers)}; "
        f"failures: {len(report.failed_answers)}"
    )
    memory = ", ".join(f"{name} {size / 2**20:+.1f} MiB" for name, (size, _) in growth.items())
    descriptors = ", ".join(f"{name} {number:+}" for name, (_, number) in growth.items())
    rows = [
        ("seed, seconds", f"{report.seed}, {report.seconds:.0f}"),
        ("requests", f"{report.requests.total():,} ({_counts(report.requests)})"),
        ("what came of them", _counts(report.statuses)),
        ("killed and frozen", _counts(report.kills) or "nothing"),
        ("processes that ended", ", ".join(report.lost_processes()) or "0"),
        ("faulty replies", str(len(report.faults))),
        ("lines of the log with a fault", str(len(report.log_lines))),
        ("bystander's answers", bystander),
        ("memory since it settled", memory),
        ("descriptors since it settled", descriptors),
    ]
    if report.settled and report.end:
        more = report.end.shared_memory - report.settled.shared_memory
        rows.append(("shared memory since it settled", f"{more / 2**20:+.1f} MiB"))
    return "\n".join(["| what | seen |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counter.most_common())

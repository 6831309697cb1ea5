"""Turns of all peers, round after round, into a journal; rows from it."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.engines import Engine
from benchmarks.peers.process import PeerFailed, PeerProcess
from benchmarks.peers.tasks import DECODED_TOKENS, MANY_ASKERS, TASKS, Task, prompts
from benchmarks.record.clock import TimeLimit
from benchmarks.record.journal import Journal
from benchmarks.record.results import Row
from benchmarks.record.statistics import bootstrap_interval, median_ratio, spread

OURS = "legokv"


@dataclass(frozen=True)
class Plan:
    """What is asked, how often, until when."""

    tasks: tuple[Task, ...]
    rounds: int
    document_tokens: int
    limit: TimeLimit
    place: dict[str, str]

    def keys(self, name: str, number: int) -> dict[str, Task]:
        """Journal keys of one peer's turn in one round."""
        asked = [task for task in self.tasks if task.is_for(name)]
        return {f"{task.name}/{name}/{number}": task for task in asked}


def run(peers: Sequence[Engine], plan: Plan, journal: Journal) -> dict[str, str]:
    """Ask every peer that is installed; by name, why one was skipped or gave up."""
    reasons = {peer.name: reason for peer in peers if (reason := peer.missing())}
    running: dict[str, PeerProcess] = {}
    try:
        for number in range(plan.rounds):
            for peer in peers:
                if peer.name in reasons or all(k in journal for k in plan.keys(peer.name, number)):
                    continue
                if plan.limit.over:
                    return reasons
                try:
                    if peer.name not in running:
                        running[peer.name] = PeerProcess.start(peer, plan.place)
                        journal.add(f"version/{peer.name}", running[peer.name].version)
                    turn(running[peer.name], plan, journal, number)
                except PeerFailed as reason:
                    reasons[peer.name] = str(reason)
    finally:
        for process in running.values():
            process.end()
        for reason in reasons.values():
            print(f"skipped: {reason}")
    return reasons


def turn(process: PeerProcess, plan: Plan, journal: Journal, number: int) -> None:
    """All tasks of one round for one peer, in their order; what was reused comes before."""
    process.wake()
    for key, task in plan.keys(process.engine.name, number).items():
        if plan.limit.over:
            break
        # Asked again even if it is in the journal: later tasks of the round reuse what it left.
        seconds = _seconds(process, task, prompts(task, number, plan.document_tokens))
        if key not in journal:
            journal.add(key, seconds)
            print(f"{key}: {seconds:.4f} s", flush=True)
    process.stop()


def _seconds(process: PeerProcess, task: Task, asked: list[dict[str, object]]) -> float:
    """Seconds to the last of the answers' tokens, mostly the first and only one; for a decode task
    seconds a step, the first token's taken off."""
    if task.answer_tokens > 1:
        process.seconds(asked[:1], 1, task.reuse)
        return process.seconds(asked, task.answer_tokens, task.reuse)
    if not task.decode:
        return process.seconds(asked, 1, task.reuse)
    process.seconds(asked, 1, task.reuse)
    first = process.seconds(asked, 1, task.reuse)
    return (process.seconds(asked, 1 + DECODED_TOKENS, task.reuse) - first) / DECODED_TOKENS


def rows(journal: Journal) -> list[Row]:
    """A row a task and peer: median and spread, and its time over legokv's, paired by round."""
    entries = journal.entries()
    names = [key.partition("/")[2] for key in entries if key.startswith("version/")]
    made: list[Row] = []
    for task in (*TASKS, *MANY_ASKERS):
        ours = _by_round(journal, task, OURS)
        for name in names:
            theirs = _by_round(journal, task, name)
            if theirs:
                labels = {"experiment": task.name, "method": name, "unit": "seconds"}
                version = {"version": entries[f"version/{name}"], "num_prompts": task.num_prompts}
                made.append(
                    labels | version | spread(list(theirs.values())).as_row() | _over(theirs, ours)
                )
    return made


def skipped(reasons: dict[str, str]) -> list[Row]:
    return [{"experiment": "skipped", "method": n, "reason": r} for n, r in reasons.items()]


def _by_round(journal: Journal, task: Task, name: str) -> dict[str, float]:
    start = f"{task.name}/{name}/"
    return {k[len(start) :]: v for k, v in journal.entries().items() if k.startswith(start)}


def _over(theirs: dict[str, float], ours: dict[str, float]) -> Row:
    pairs = [(seconds, ours[number]) for number, seconds in theirs.items() if number in ours]
    if not pairs:
        return {}
    low, high = bootstrap_interval(pairs, median_ratio)
    return {"over_legokv": median_ratio(pairs), "over_legokv_low": low, "over_legokv_high": high}

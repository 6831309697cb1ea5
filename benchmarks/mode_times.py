"""python -m benchmarks.mode_times: time to first token of the product's modes, over one prompt.

A head of 32 tokens, eight documents of 512 and a question of 32, all random. The modes take turns,
each once a round, and each is compared with LegoLink-16 of its own round. Documents are compiled
and ranked before. Stops at --minutes; the same command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.cost.cases import QUESTION_TOKENS, random_ids
from benchmarks.record.about import RESULTS, ROOT, about, model_label
from benchmarks.record.clock import TimeLimit, seconds_of
from benchmarks.record.ending import run
from benchmarks.record.journal import Journal, open_journal
from benchmarks.record.results import Row, write_results
from benchmarks.record.statistics import spread
from legokv import Chunk, Engine, EngineSettings
from legokv.engine.jobs import Prefill

EXPERIMENT = "modes"
HEAD_TOKENS = 32
NUM_CHUNKS = 8
CHUNK_TOKENS = 512
COMPARED = "legolink-16"

ALONE, BEHIND, ELSEWHERE = "alone", "behind the head", "behind another head"
Asked = dict[str, Any]
GUIDED: Asked = {"mode": "guided"}
DRIFT: Asked = {"mode": "guided-ranked-drift"}
MODES: dict[str, tuple[str, Asked]] = {
    "full": (ALONE, {"mode": "full"}),
    "naive": (ALONE, {"link_tokens": 0}),
    COMPARED: (ALONE, {"link_tokens": 16}),
    "guided-16": (ALONE, {**GUIDED, "link_tokens": 16}),
    "guided-10": (ALONE, {**GUIDED, "recompute_percent": 10}),
    "guided-drift-8": (ALONE, {"mode": "guided-drift", "link_tokens": 8}),
    "behind-head": (BEHIND, {"link_tokens": 0}),
    "behind-head+guided-10": (BEHIND, {**GUIDED, "recompute_percent": 10}),
    "behind-head+guided-ranked-10": (BEHIND, {"mode": "guided-ranked", "recompute_percent": 10}),
    "behind-head+guided-ranked-drift-8": (BEHIND, {**DRIFT, "link_tokens": 8}),
    "behind-head+guided-ranked-drift-16": (BEHIND, {**DRIFT, "link_tokens": 16}),
    "behind-head+guided-ranked-drift-10%": (BEHIND, {**DRIFT, "recompute_percent": 10}),
    "behind-chat-head": (ELSEWHERE, {"link_tokens": 0}),
    "behind-chat-head+guided-drift-16": (ELSEWHERE, {"mode": "guided-drift", "link_tokens": 16}),
    "behind-chat-head+guided-ranked-drift-8": (ELSEWHERE, {**DRIFT, "link_tokens": 8}),
    "behind-chat-head+guided-ranked-drift-16": (ELSEWHERE, {**DRIFT, "link_tokens": 16}),
}
"""By the reuse benchmarks' names: how the documents are compiled, and what the engine is asked."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="calls of each mode (default 9)")
    parser.add_argument("--minutes", type=float, default=5, help="no new call after these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where modes.json goes")
    return parser.parse_args()


def compiled(engine: Engine) -> dict[str, list[Chunk]]:
    """The head, kept apart, and the same documents behind it, by how they are compiled."""
    texts = [random_ids(engine, CHUNK_TOKENS, 1000 + number) for number in range(NUM_CHUNKS)]
    head, other = (random_ids(engine, HEAD_TOKENS, seed) for seed in (3, 4))
    first = engine.compile(head)
    alone = [engine.compile(ids) for ids in texts]
    behind, elsewhere = (
        [engine.compile(ids, behind=ids_before, rank=True) for ids in texts]
        for ids_before in (head, other)
    )
    return {ALONE: [first, *alone], BEHIND: [first, *behind], ELSEWHERE: [first, *elsewhere]}


def measure(engine: Engine, journal: Journal, rounds: int, limit: TimeLimit) -> None:
    """Each mode once a round; the first call of each, which loads what it needs, is not counted."""
    documents = compiled(engine)
    question = random_ids(engine, QUESTION_TOKENS, 1)

    def ask(name: str) -> Prefill:
        how, asked = MODES[name]
        return engine.prefill([*documents[how], question], **asked)

    tokens = {name: ask(name).usage.recomputed_tokens for name in MODES}
    for number in range(rounds):
        if limit.over:
            return
        if str(number) not in journal:
            times = {name: seconds_of(lambda name=name: ask(name)) for name in MODES}
            journal.add(str(number), {"seconds": times, "recomputed_tokens": tokens})


def rows(rounds: list[dict[str, Any]]) -> list[Row]:
    """A row a mode: its seconds, and its times LegoLink-16's, round by round."""
    made: list[Row] = []
    for name in MODES if rounds else ():
        seconds = [found["seconds"][name] for found in rounds]
        ratios = [found["seconds"][name] / found["seconds"][COMPARED] for found in rounds]
        over = spread(ratios)
        made.append(
            {"experiment": EXPERIMENT, "method": name, "unit": "seconds"}
            | spread(seconds).as_row()
            | {"recomputed_tokens": rounds[0]["recomputed_tokens"][name]}
            | {"over": over.median, "over_low": over.low, "over_high": over.high}
        )
    return made


def main() -> int:
    arguments = parse_arguments()
    limit = TimeLimit(arguments.minutes)
    settings = {"engine": str(arguments.engine), "threads": arguments.threads}
    journal = open_journal("modes", settings)
    engine = Engine.open(
        arguments.engine, settings=EngineSettings(num_threads=arguments.threads, pool_tokens=32768)
    )
    measure(engine, journal, arguments.rounds, limit)
    facts = engine.facts
    found = list(journal.entries().values())
    header = about(model_label(facts), facts.dtype, len(found), arguments.threads)
    path = write_results("modes", header, rows(found), arguments.results)
    print(f"{path}: {len(found)} rounds of {len(MODES)} modes")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

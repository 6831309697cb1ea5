"""python -m benchmarks.peers: the same prompts to legokv, vLLM, llama.cpp and transformers.

One process a peer, loaded once, asked in turns, stopped in between. Stops at --minutes; the same
command goes on where it stopped and writes peers.json each time. A load that is mostly decoding,
many askers over few documents in one order and in shuffled orders, beside vLLM with prefix caching
(its results are askers.json):

    python -m benchmarks.peers --peers legokv vllm --rounds 3 --minutes 40 \
        --tasks '32 askers, one order' '32 askers, shuffled orders'
"""

import argparse
import sys
from pathlib import Path

from benchmarks.peers import measure
from benchmarks.peers.engines import engine, engines
from benchmarks.peers.install import GGUF
from benchmarks.peers.tasks import MANY_ASKERS, TASKS, context_tokens, task
from benchmarks.record.about import RESULTS, ROOT, about, model_label
from benchmarks.record.clock import TimeLimit
from benchmarks.record.ending import run
from benchmarks.record.journal import open_journal
from benchmarks.record.results import write_results
from legokv.built.folder import read_engine_folder

CHECKPOINT = ROOT / "out" / "checkpoints" / "SmolLM2-135M-Instruct"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--peers", nargs="+", default=list(engines(1)), metavar="PEER")
    parser.add_argument("--tasks", nargs="+", default=[t.name for t in TASKS], metavar="TASK")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--document-tokens", type=int, default=512, help="of 8 documents")
    parser.add_argument("--minutes", type=float, default=60, help="no new turn after these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where peers.json goes")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    facts = read_engine_folder(arguments.engine)
    peers = [engine(name, arguments.threads) for name in arguments.peers]
    tasks = tuple(task(name) for name in arguments.tasks)
    plan = measure.Plan(
        tasks=tasks,
        rounds=arguments.rounds,
        document_tokens=arguments.document_tokens,
        limit=TimeLimit(arguments.minutes),
        place={
            "checkpoint": str(CHECKPOINT),
            "gguf": str(GGUF),
            "engine": str(arguments.engine),
            "num_threads": str(arguments.threads),
            "context_tokens": str(context_tokens(tasks, arguments.document_tokens)),
        },
    )
    settings = {"threads": arguments.threads, "document_tokens": arguments.document_tokens}
    name = "askers" if set(tasks) <= set(MANY_ASKERS) else "peers"
    journal = open_journal(name, settings)
    reasons = measure.run(peers, plan, journal)
    described = about(model_label(facts), facts.dtype, len(journal), arguments.threads)
    rows = [*measure.rows(journal), *measure.skipped(reasons)]
    print(write_results(name, described, rows, arguments.results))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""python -m benchmarks.cost: time and memory of every method in one process, interleaved.

Stops at --minutes; the same command goes on where it stopped and writes cost.json each time.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.cost import compile_price, memory, prefill_times, reuse_methods, time_split
from benchmarks.record.about import RESULTS, ROOT, about, model_label
from benchmarks.record.clock import TimeLimit
from benchmarks.record.ending import run
from benchmarks.record.journal import open_journal
from benchmarks.record.results import write_results
from legokv import Engine, EngineSettings

LENGTHS = (1024, 2048, 4096, 6144, 7680)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="calls of each method (default 5)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="prompt tokens")
    parser.add_argument("--chunk-tokens", type=int, default=prefill_times.CHUNK_TOKENS)
    parser.add_argument("--minutes", type=float, default=60, help="no new call after these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where cost.json goes")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    limit = TimeLimit(arguments.minutes)
    settings = {"threads": arguments.threads, "chunk_tokens": arguments.chunk_tokens}
    journal = open_journal("cost", {"engine": str(arguments.engine), **settings})
    engine = Engine.open(
        arguments.engine, settings=EngineSettings(num_threads=arguments.threads, pool_tokens=49152)
    )
    todo = prefill_times.points(arguments.lengths, arguments.chunk_tokens)
    tokens, rounds = arguments.chunk_tokens, arguments.rounds
    time_split.measure(arguments.engine, journal, tokens, rounds, limit)
    compile_price.measure(engine, journal, tokens, rounds, limit)
    model = arguments.engine, tokens
    reuse_methods.measure(model, journal, rounds, limit)
    prefill_times.measure(engine, journal, todo, rounds, limit)
    rows = [
        *prefill_times.rows(journal, todo),
        *reuse_methods.rows(journal),
        *compile_price.rows(journal),
        *time_split.rows(journal),
        *memory.rows(engine, tokens),
    ]
    facts = about(model_label(engine.facts), engine.facts.dtype, len(journal), arguments.threads)
    print(f"{write_results('cost', facts, rows, arguments.results)}: {len(journal)} measurements")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

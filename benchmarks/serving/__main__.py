"""python -m benchmarks.serving: a Zipf and Poisson workload against the running Triton server.

Stops at --minutes; the same command goes on where it stopped and writes serving.json each time.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.record.about import RESULTS, ROOT, about, model_label
from benchmarks.record.clock import TimeLimit
from benchmarks.record.ending import run
from benchmarks.record.journal import Journal, open_journal
from benchmarks.record.results import Row, write_results
from benchmarks.serving import overhead, sweep
from benchmarks.serving.setups import DOCUMENT_TOKENS, SETUPS, Setup, setup
from benchmarks.serving.workload import reusable, selections
from legokv.built.folder import read_engine_folder

RATES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--setups", nargs="+", default=["fits", "too-large"], choices=SETUPS)
    parser.add_argument("--document-tokens", type=int, default=DOCUMENT_TOKENS)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="requests a second")
    parser.add_argument("--probes", type=int, default=4, help="of the search for the highest rate")
    parser.add_argument("--requests", type=int, default=24, help="least requests at one rate")
    parser.add_argument("--probe-seconds", type=float, default=60, help="of arrivals at high rates")
    parser.add_argument("--bound-seconds", type=float, default=6, help="p90 time to first token")
    parser.add_argument("--minutes", type=float, default=120, help="no new probe after these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where serving.json goes")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    limit = TimeLimit(arguments.minutes)
    size = sweep.Size(
        engine=arguments.engine,
        threads=arguments.threads,
        document_tokens=arguments.document_tokens,
        max_tokens=arguments.max_tokens,
        min_requests=arguments.requests,
        probe_seconds=arguments.probe_seconds,
        bound_seconds=arguments.bound_seconds,
    )
    kept = ("threads", "document_tokens", "max_tokens", "requests", "probe_seconds")
    journal = open_journal("serving", {name: getattr(arguments, name) for name in kept})
    chosen = [setup(name) for name in arguments.setups]
    try:
        for each in chosen:
            measure(each, size, journal, limit, arguments)
    except sweep.OutOfTime as reason:
        print(f"{reason}: the same command goes on from here")
    rows = [
        *sweep.rows(journal, chosen, arguments.bound_seconds),
        *overhead.rows(journal),
        *(reusable_row(each) for each in chosen),
    ]
    facts = read_engine_folder(arguments.engine)
    described = about(model_label(facts), facts.dtype, len(journal), arguments.threads)
    print(write_results("serving", described, rows, arguments.results))
    return 0


def measure(
    each: Setup,
    size: sweep.Size,
    journal: Journal,
    limit: TimeLimit,
    arguments: argparse.Namespace,
) -> None:
    for number, name in enumerate(each.methods):
        with sweep.Served(each, name, size, journal, limit) as served:
            if number == 0:
                overhead.measure(served, 10)
            sweep.measure(served, arguments.rates, arguments.probes)


def reusable_row(each: Setup) -> Row:
    """What the workload itself lets a cache without limits reuse, of 1,000 requests."""
    share = reusable(selections(each.workload, 1000))
    return {"experiment": "reusable", "set": each.name, **vars(share)}


if __name__ == "__main__":
    sys.exit(run(main))

"""python -m benchmarks.reuse fidelity|quality|heads|answers|long: what reuse does to answers.

Stops at --minutes or Ctrl-C; the same command goes on where it stopped. Results are written at the
end of each call, with --summarise from what there is.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.record.about import RESULTS, ROOT, about, commit, model_label
from benchmarks.record.clock import TimeLimit
from benchmarks.record.ending import run
from benchmarks.record.journal import Journal
from benchmarks.record.results import Row, write_results
from benchmarks.reuse import entries, fidelity, quality, tables
from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.methods import (
    ANSWER_METHODS,
    HEAD_METHODS,
    LONG_METHODS,
    MAIN,
    OTHERS,
    Method,
    UnknownMethod,
    method_by_name,
)
from benchmarks.reuse.sets import (
    FIDELITY,
    LONG,
    QUALITY,
    Case,
    Prompts,
    UnknownSet,
    cases,
    sets_by_name,
)
from legokv.built.settings import AttentionName

Measure = Callable[[LinkedModel, Any, Sequence[Method]], Any]


@dataclass(frozen=True)
class Kind:
    """`rounds` is what is measured over all cases before the next; unless methods are named."""

    sets: dict[str, Prompts]
    measure: Measure
    rounds: tuple[tuple[Method, ...], ...]
    pool_tokens: int = 24_576


_ROUNDS = (MAIN, OTHERS)
KINDS = {
    "fidelity": Kind(FIDELITY, fidelity.measure, _ROUNDS),
    "quality": Kind(QUALITY, quality.measure, _ROUNDS),
    "heads": Kind(FIDELITY, fidelity.measure, (HEAD_METHODS,)),
    "answers": Kind(
        sets_by_name(QUALITY, ("facts", "two-chunk")), quality.measure, (ANSWER_METHODS,)
    ),
    "long": Kind(LONG, fidelity.measure, (LONG_METHODS,), 40_960),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--cases", type=int, default=200, help="of each large set (default 200)")
    parser.add_argument("--minutes", type=float, default=60, help="no new case after these")
    parser.add_argument("--methods", help="names between commas (default: all, the main first)")
    parser.add_argument("--sets", help="names between semicolons (default: all of the kind)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--attention", default="auto", choices=get_args(AttentionName))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON results")
    parser.add_argument("--summarise", action="store_true", help="measure nothing more")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    try:
        _run(arguments, _asked(arguments))
    except (UnknownMethod, UnknownSet) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _asked(arguments: argparse.Namespace) -> Kind:
    """The kind, with those of its sets and those methods alone that are named."""
    kind = KINDS[arguments.kind]
    if arguments.sets is not None:
        kind = replace(kind, sets=sets_by_name(kind.sets, arguments.sets.split(";")))
    if arguments.methods is not None:
        named = tuple(method_by_name(name) for name in arguments.methods.split(","))
        kind = replace(kind, rounds=(named,))
    return kind


def _run(arguments: argparse.Namespace, kind: Kind) -> None:
    limit = TimeLimit(arguments.minutes)
    torch.set_num_threads(arguments.threads)
    model = LinkedModel(arguments.engine, arguments.dtype, arguments.attention, kind.pool_tokens)
    facts = model.facts
    settings = {"weights": facts.fingerprint, "dtype": facts.dtype, "attention": model.attention}
    journal = entries.open_entries(arguments.kind, settings)
    todo = cases(kind.sets, model.tokenizer, arguments.cases)
    try:
        for methods in kind.rounds if not arguments.summarise else ():
            _measure(model, journal, todo, methods, kind.measure, limit)
    except KeyboardInterrupt:
        print("interrupted: what is done is kept, the same command goes on from there")
    _write(arguments, model, journal, todo)


def _measure(
    model: LinkedModel,
    journal: Journal,
    todo: Sequence[Case],
    methods: Sequence[Method],
    measure: Measure,
    limit: TimeLimit,
) -> None:
    """Case by case, all methods of each, so that a stop leaves pairs."""
    for number, case in enumerate(todo):
        if limit.over:
            return
        left = entries.missing(journal, case.key, [method.name for method in methods])
        wanted = [method for method in methods if method.name in left]
        if not wanted:
            continue
        for name, row in measure(model, case.prompt, wanted):
            journal.add(entries.key_of(case.key, name), {**row, "commit": commit()})
        print(f"{number + 1} of {len(todo)}: {case.key}, {len(wanted)} methods", flush=True)


def _write(
    arguments: argparse.Namespace, model: LinkedModel, journal: Journal, todo: Sequence[Case]
) -> None:
    found = entries.by_method(journal, [case.key for case in todo])
    if not found:
        print("nothing is measured yet, so no results are written")
        return
    facts = model.facts
    num_cases = len({case for rows in found.values() for case in rows})
    header = about(model_label(facts), facts.dtype, num_cases, arguments.threads)
    measured_at = entries.commits(journal)
    header |= {"commit": measured_at[0], "commits": measured_at}
    header |= {"attention": model.attention, "raw_rows": len(journal)}
    for name, rows in _tables(arguments.kind, found).items():
        path = write_results(name, header, rows, arguments.results)
        print(f"{path}: {len(rows)} rows over {num_cases} cases")


def _tables(kind: str, found: tables.ByMethod) -> dict[str, list[Row]]:
    """The result files of one kind, by name."""
    if kind == "long":
        return {"long_documents": tables.long_document_rows(found, fidelity.METRICS)}
    if kind == "heads":
        return {"heads": tables.gaps_by_set(found, list(KINDS[kind].sets), fidelity.METRICS)}
    made: dict[str, list[Row]] = {}
    for name in KINDS[kind].sets:
        part = tables.of_set(found, name)
        if kind in ("quality", "answers"):
            made.setdefault(kind, []).extend(tables.metric_rows(part, name, quality.METRICS))
            continue
        made.setdefault(kind, []).extend(tables.metric_rows(part, name, fidelity.METRICS))
        made.setdefault("kv_error", []).extend(tables.kv_error_rows(part, name))
        made.setdefault("attention_mass", []).extend(tables.head_mass_rows(part, name))
    if kind == "quality":
        made[kind] += tables.needle_rows(tables.of_set(found, "facts"), quality.METRICS)
    return made


if __name__ == "__main__":
    sys.exit(run(main))

"""python -m benchmarks.stored_forms: what int8 KV changes of answers, and what it saves and costs.

Every case is linked twice at k = 16 over the same chunks: with KV as it was compiled, and with it
rounded to int8 and back. All tokens of the gold answer are compared, teacher-forced. Stops at
--minutes; the same command goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.record.about import RESULTS, ROOT, about, model_label
from benchmarks.record.clock import TimeLimit, seconds_of
from benchmarks.record.ending import run
from benchmarks.record.journal import Journal, open_journal
from benchmarks.record.results import Row, write_results
from benchmarks.record.statistics import spread
from benchmarks.reuse.bootstrap import mean_interval
from benchmarks.reuse.fidelity import compare
from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.prompt import Prompt
from benchmarks.reuse.sets import FIDELITY, cases
from legokv.built.settings import AttentionName
from legokv.chunks.header import STORED_DTYPES, StoredDtype
from legokv.chunks.stored_form import decode_chunk, encode_chunk
from legokv.chunks.stored_kv import from_stored, to_stored
from legokv.link.policy import legolink

POOL_TOKENS = 4096
LINK_TOKENS = 16
METRICS = ("kl", "top1", "delta_nll")
TIMED_TOKENS = 1024
KEY = "0" * 64


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument(
        "--cases", type=int, default=20, help="of HotpotQA, and a quarter of essays"
    )
    parser.add_argument("--minutes", type=float, default=5, help="no new case after these")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--attention", default="auto", choices=get_args(AttentionName))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of the timed chunk")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON results")
    return parser.parse_args()


def compare_forms(model: LinkedModel, prompt: Prompt) -> dict[str, float]:
    """Int8 against the model's type over one case, as `compare` has it."""
    model.clear()
    for segment in prompt.segments:
        model.compile(segment)
    exact = answer_log_probabilities(model, prompt)
    round_pools(model)
    return compare(answer_log_probabilities(model, prompt), exact, prompt.answer)


def round_pools(model: LinkedModel) -> None:
    """Round all compiled KV to int8, as an engine that keeps int8 does when it compiles."""
    for pool in model.pools:
        # A token and head at a time, so that it does not matter how they lie in pages.
        pool.copy_(from_stored(to_stored(pool, "int8")))


def answer_log_probabilities(model: LinkedModel, prompt: Prompt) -> Tensor:
    """Of all tokens at each place of the gold answer, linked at k = 16."""
    chunks = [model.compile(segment) for segment in prompt.segments]
    fresh = prompt.question + prompt.answer[:-1]
    placed = model.bind(model.place([*chunks, fresh]).link(legolink(LINK_TOKENS)))
    try:
        return F.log_softmax(model.compute(placed, len(prompt.answer)), -1)
    finally:
        model.release(placed)


def cost(model: LinkedModel, form: StoredDtype, rounds: int) -> Row:
    """Bytes of a token, and seconds to make a chunk's stored bytes and KV of them again."""
    config = model.facts.model
    shape = (config.num_layers, 2, TIMED_TOKENS, config.num_kv_heads, config.head_size)
    generator = torch.Generator().manual_seed(0)
    kv = torch.randn(shape, generator=generator).to(getattr(torch, model.facts.dtype))
    ids = range(TIMED_TOKENS)
    encoded = encode_chunk(KEY, ids, to_stored(kv, form))
    content = bytearray(encoded.header) + encoded.data

    def store() -> None:
        encode_chunk(KEY, ids, to_stored(kv, form))

    def load() -> None:
        from_stored(decode_chunk(content, KEY, ids))

    row: Row = {"experiment": "cost", "method": form, "tokens": TIMED_TOKENS}
    row["bytes_a_token"] = round(encoded.num_bytes / TIMED_TOKENS, 1)
    return row | {"store": _timed(store, rounds), "load": _timed(load, rounds)}


def _timed(call: Callable[[], object], rounds: int) -> dict[str, Any]:
    call()
    return spread([seconds_of(call) for _ in range(rounds)]).as_row()


def fidelity_rows(found: dict[str, dict[str, float]]) -> list[Row]:
    """A row a set and metric from the numbers of cases by their keys."""
    rows = []
    for name in FIDELITY:
        part = [numbers for key, numbers in found.items() if key.startswith(f"{name}/")]
        for metric in METRICS if part else ():
            interval = mean_interval([numbers[metric] for numbers in part])
            numbers = {key: round(value, 6) for key, value in vars(interval).items()}
            rows.append({"experiment": "fidelity", "set": name, "metric": metric, **numbers})
    return rows


def _run(arguments: argparse.Namespace) -> None:
    limit = TimeLimit(arguments.minutes)
    torch.set_num_threads(arguments.threads)
    model = LinkedModel(arguments.engine, arguments.dtype, arguments.attention, POOL_TOKENS)
    facts = model.facts
    settings = {"weights": facts.fingerprint, "dtype": facts.dtype, "attention": model.attention}
    journal = open_journal("stored-forms", settings)
    todo = cases(FIDELITY, model.tokenizer, arguments.cases)
    for number, case in enumerate(todo):
        if limit.over:
            break
        if case.key not in journal:
            journal.add(case.key, compare_forms(model, case.prompt))
            print(f"{number + 1} of {len(todo)}: {case.key}", flush=True)
    _write(arguments, model, journal)


def _write(arguments: argparse.Namespace, model: LinkedModel, journal: Journal) -> None:
    found = journal.entries()
    rows = fidelity_rows(found)
    rows += [cost(model, form, arguments.rounds) for form in STORED_DTYPES]
    facts = model.facts
    header = about(model_label(facts), facts.dtype, len(found), arguments.threads)
    path = write_results("stored_forms", header, rows, arguments.results)
    print(f"{path}: {len(rows)} rows over {len(found)} cases")


def main() -> int:
    _run(parse_arguments())
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

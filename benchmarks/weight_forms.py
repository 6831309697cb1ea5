"""python -m benchmarks.weight_forms: what weights in blocks change of answers, and their speed.

Of any bfloat16 engine of this machine: its weights as they are and in blocks, in one process, in
turns. First steps are timed, then all tokens of gold answers compared, teacher-forced, each form
computing all KV of its own, linked at k = 16. Ratios are bfloat16's CPU time to theirs.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

from benchmarks.record.about import ROOT
from benchmarks.record.ending import run
from benchmarks.reuse.bootstrap import mean_interval
from benchmarks.reuse.fidelity import compare
from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.prompt import Prompt
from benchmarks.reuse.sets import FIDELITY, cases
from benchmarks.stored_forms import METRICS, POOL_TOKENS, answer_log_probabilities
from legokv.built.settings import AttentionName
from legokv.link.policy import legolink
from legokv.model.dtypes import WEIGHT_FORMS

Models = dict[str, LinkedModel]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--form", default="int8", choices=WEIGHT_FORMS[1:])
    parser.add_argument("--cases", type=int, default=20, help="of HotpotQA, a quarter of essays")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 144, 512, 1024])
    parser.add_argument("--rounds", type=int, default=31, help="a third of them above 64 tokens")
    parser.add_argument("--attention", default="auto", choices=get_args(AttentionName))
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and seconds of a call."""
    started, used = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - used, time.perf_counter() - started


def step_ratios(models: Models, num_tokens: int, rounds: int) -> str:
    """How much longer bfloat16's step over some fresh tokens takes, and its parts' medians."""
    ids = torch.randint(100, 40000, (num_tokens,), generator=torch.Generator().manual_seed(1))

    def step(model: LinkedModel) -> None:
        placed = model.bind(model.place([ids.tolist()]).link(legolink(0)))
        model.compute(placed, 1)
        model.release(placed)

    times: dict[str, list[tuple[float, float]]] = {form: [] for form in models}
    for _ in range(rounds + 1):
        for form, model in models.items():
            times[form].append(timed(lambda model=model: step(model)))  # type: ignore[misc]
    pairs = list(zip(*times.values(), strict=True))[1:]
    ratios = sorted(plain[0] / blocks[0] for plain, blocks in pairs)
    wall = statistics.median(plain[1] / blocks[1] for plain, blocks in pairs)
    medians = [statistics.median(pair[form][0] for pair in pairs) * 1e3 for form in (0, 1)]
    return (
        f"{num_tokens} tokens: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}) of {rounds}, by the clock {wall:.2f}; "
        f"CPU {medians[0]:.1f} and {medians[1]:.1f} ms"
    )


def compared(models: Models, prompt: Prompt) -> dict[str, float]:
    """Weights in blocks against the model's type over one case, as `compare` has it."""
    found = []
    for model in models.values():
        model.clear()
        found.append(answer_log_probabilities(model, prompt))
    return compare(found[1], found[0], prompt.answer)


def _run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    models = {
        form: LinkedModel(arguments.engine, "bfloat16", arguments.attention, POOL_TOKENS, form)
        for form in ("model", arguments.form)
    }
    model = models["model"]
    print(f"{model.facts.name}, {arguments.form}, {arguments.threads} threads, {model.attention}")
    for num_tokens in arguments.tokens:
        rounds = arguments.rounds if num_tokens <= 64 else -(-arguments.rounds // 3)
        print(step_ratios(models, num_tokens, rounds), flush=True)
    todo = cases(FIDELITY, model.tokenizer, arguments.cases) if arguments.cases else []
    found = {case.key: compared(models, case.prompt) for case in todo}
    for name in FIDELITY:
        part = [numbers for key, numbers in found.items() if key.startswith(f"{name}/")]
        for metric in METRICS if part else ():
            print(
                f"{name}, {len(part)} cases, {metric}: {mean_interval([n[metric] for n in part])}"
            )


def main() -> int:
    _run(parse_arguments())
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""python -m benchmarks.plan_forms: what FP8 and INT4 of a plan change of answers, without a plan.

Simulated on this machine's CPU, in bfloat16: the eager model of the weights that the plan would
have, FP8 with its inputs rounded in front of each product, too. Gold answers teacher-forced, each
form computing its whole prompt anew, against the weights as they are. No plan has been run.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.record.about import ROOT
from benchmarks.record.ending import run
from benchmarks.reuse.bootstrap import mean_interval
from benchmarks.reuse.fidelity import compare
from benchmarks.reuse.prompt import Prompt
from benchmarks.reuse.sets import FIDELITY, cases
from benchmarks.stored_forms import METRICS
from legokv.build.calibration import calibrate, products_of, run_text
from legokv.built.folder import read_engine_folder
from legokv.checkpoint.weights import load_weights
from legokv.model.decoder import Decoder, decoder_from_weights
from legokv.model.dtypes import PLAN_FORMS
from legokv.ops.quantised_weight import fake_fp8
from legokv.text.tokenizer import Tokenizer

SAMPLES = ROOT / "examples" / "documents"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, default=ROOT / "out" / "engines" / "llama")
    parser.add_argument("--cases", type=int, default=20, help="of HotpotQA, a quarter of essays")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def decoders(folder: Path) -> dict[str, Decoder]:
    """By form: the weights as they are, those of each form, and FP8's with rounded inputs."""
    config = read_engine_folder(folder).model
    texts = [file.read_text(encoding="utf-8") for file in sorted(SAMPLES.glob("*.txt"))]
    scales = calibrate(folder, config, texts, "", print).scales
    forms = {"model": "model"} | {f"{name} weights": form for name, form in PLAN_FORMS.items()}
    made = {
        name: decoder_from_weights(config, load_weights(folder, config, torch.bfloat16, form))
        for name, form in (forms | {"fp8": PLAN_FORMS["fp8"]}).items()
    }
    round_inputs(made["fp8"], scales)
    return made


def round_inputs(decoder: Decoder, scales: Mapping[str, float]) -> None:
    """Have the decoder's products round their inputs to FP8 by these scales."""

    def rounding(scale: float) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def rounded(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (fake_fp8(inputs[0], scale), *inputs[1:])

        return rounded

    for name, product in products_of(decoder).items():
        product.register_forward_pre_hook(rounding(scales[name]))


def answer_log_probabilities(decoder: Decoder, prompt: Prompt) -> Tensor:
    """Of all tokens at each place of the gold answer, behind the whole prompt."""
    ids = [*(token for segment in prompt.segments for token in segment), *prompt.question]
    ids += prompt.answer[:-1]
    rows = range(len(ids) - len(prompt.answer), len(ids))
    return F.log_softmax(run_text(decoder, ids, [*rows]), -1)


def _run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    made = decoders(arguments.engine)
    todo = cases(FIDELITY, Tokenizer.open(arguments.engine), arguments.cases)
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in made}
    for case in todo:
        full = answer_log_probabilities(made["model"], case.prompt)
        for name, decoder in made.items():
            rows = answer_log_probabilities(decoder, case.prompt)
            found[name][case.key] = compare(rows, full, case.prompt.answer)
    for name, numbers in found.items():
        for of in FIDELITY if name != "model" else ():
            part = [each for key, each in numbers.items() if key.startswith(f"{of}/")]
            for metric in METRICS if part else ():
                mean = mean_interval([each[metric] for each in part])
                words = f"{mean.mean:.3f} ({mean.low:.3f} to {mean.high:.3f})"
                print(f"{name}, simulated: {of}, {len(part)} cases, {metric}: {words}")


def main() -> int:
    _run(parse_arguments())
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""What an engine folder has besides its checkpoint's files: ONNX files, plans and their plugins."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from legokv.build.calibration import Calibration
from legokv.built.folder import (
    MODEL_FILE,
    SCORING_MODEL_FILE,
    SCORING_WEIGHTS_FILE,
    WEIGHTS_FILE,
    EngineFacts,
)
from legokv.built.seal import CALIBRATION_FILE, is_calibrated
from legokv.checkpoint.weights import Weight, dense_weight, load_kept_weights
from legokv.errors import BackendMissing
from legokv.model.decoder import decoder_from_weights
from legokv.ops.quantised_weight import QuantisedWeight
from legokv.plan.llm import CONFIG_FILE, FLAVOUR, write_llm_config
from legokv.plan.write import files_beside, write_plan
from legokv.step.graph import GraphShape, ImportBy, ScoringShape, graph_shape


@dataclass(frozen=True)
class Inputs:
    """What products are made from, and who is told how far they are.

    before: the engine folder whose place the new one takes, where there is one.
    calibration: of FP8 products' inputs, where there are such.
    """

    checkpoint: Path
    plugin_library: Path | None
    before: Path
    say: Callable[[str], None]
    calibration: Calibration | None = None


def product_names(facts: EngineFacts, *, with_onnx: bool) -> frozenset[str]:
    """The files to make for `facts`; a plan comes with the model and the plugins it is made of."""
    names = {MODEL_FILE, WEIGHTS_FILE} if with_onnx or facts.plan else set()
    if facts.plan is not None:
        names |= {facts.plan.plan_file, facts.plan.library_file}
        names |= {CONFIG_FILE} if facts.plan.flavour == FLAVOUR else set()
    names |= {CALIBRATION_FILE} if is_calibrated(facts) else set()
    if facts.plan is not None and facts.plan.scoring_file:
        names |= {facts.plan.scoring_file, SCORING_MODEL_FILE, SCORING_WEIGHTS_FILE}
    return frozenset(names)


def make_products(
    facts: EngineFacts, names: Collection[str], inputs: Inputs, folder: Path
) -> frozenset[str]:
    """Make the files of these `names` in `folder`; these, and what came with them."""
    if inputs.calibration is not None:
        text = inputs.calibration.to_json()
        (folder / CALIBRATION_FILE).write_text(text, encoding="utf-8")
    if MODEL_FILE in names:
        _export(facts, inputs, folder)
    if facts.plan is not None and inputs.plugin_library is not None:
        graph = _graph(facts)
        write_plan(folder, facts.plan, graph, inputs.plugin_library, inputs.before, inputs.say)
    if CONFIG_FILE in names and facts.plan is not None:
        write_llm_config(folder, facts.model, facts.dtypes.compute, facts.plan)
    return frozenset(names) | (files_beside(facts.plan) if facts.plan else frozenset())


def _graph(facts: EngineFacts) -> GraphShape:
    # Without a plan the file is for others to build one of: it has all that there is to run.
    imports: ImportBy = "plugin" if facts.plan is None else facts.plan.import_by
    return graph_shape(facts.model, facts.dtypes, facts.page_size, imports)


def _export(facts: EngineFacts, inputs: Inputs, folder: Path) -> None:
    try:
        # Here, since only this needs the optional onnx packages.
        from legokv.export import Quantised, export_onnx, export_scoring_onnx
    except ModuleNotFoundError as error:
        raise BackendMissing(
            f"{MODEL_FILE} needs {error.name}: pip install 'legokv[onnx]', or choose --no-onnx"
        ) from error
    dtype = getattr(torch, facts.dtypes.weights)
    kept = load_kept_weights(inputs.checkpoint, facts.model, dtype, facts.weights)
    quantised = {name: each for name, each in kept.items() if isinstance(each, QuantisedWeight)}
    scales = inputs.calibration.scales if inputs.calibration is not None else {}
    decoder = decoder_from_weights(
        facts.model, {name: dense_weight(each, dtype) for name, each in kept.items()}
    )
    graph, nodes = _graph(facts), Quantised(quantised, scales)
    with _said(inputs, folder, MODEL_FILE, facts, facts.model.num_layers):
        if quantised:
            inputs.say(f"  {_said_of(kept, quantised)}")
        export_onnx(decoder, graph, folder, nodes)
    if facts.plan is not None and facts.plan.scoring_file:
        layers = facts.plan.scored
        with _said(inputs, folder, SCORING_MODEL_FILE, facts, layers.stop):
            export_scoring_onnx(decoder, ScoringShape(graph, layers), folder, nodes)


@contextmanager
def _said(
    inputs: Inputs, folder: Path, name: str, facts: EngineFacts, num_layers: int
) -> Iterator[None]:
    """Say what is exported, then how large it is with its weights and how long it took."""
    started = time.monotonic()
    inputs.say(f"Exporting {name}, {num_layers} layers in {facts.dtypes.compute}")
    yield
    num_bytes = sum((folder / file).stat().st_size for file in (name, f"{name}.data"))
    inputs.say(f"  {num_bytes / 2**20:.1f} MiB in {time.monotonic() - started:.1f} s")


def _said_of(kept: Mapping[str, Weight], quantised: Mapping[str, QuantisedWeight]) -> str:
    """What is quantised and what is not, in words: the log's line."""
    numbers = sum(prod(each.shape) for each in quantised.values())
    rest = sum(prod(each.shape) for name, each in kept.items() if name not in quantised)
    first = next(iter(quantised.values()))
    form = "INT4" if first.block else "FP8"
    blocks = sorted({each.block for each in quantised.values()} - {0})
    form += f" in blocks of {' and '.join(map(str, blocks))}" if blocks else ""
    return (
        f"{numbers:,} numbers of {len(quantised)} products as {form}; {rest:,} in the model's "
        "type: norms and biases, the embedding, of which one row a token is read, and the head, "
        "whose rounding would go straight into the logits"
    )

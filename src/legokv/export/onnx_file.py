"""From a decoder to model.onnx, or the scoring pass alone, with its weights beside it.

The scoring pass is exported by tests alone: no engine folder has scoring.onnx, no runner opens it.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from legokv.built.folder import MODEL_FILE
from legokv.export.plugin_ops import translation_table
from legokv.export.step_graph import ScoringGraph, StepGraph
from legokv.model.decoder import Decoder
from legokv.step.graph import (
    AFTER_B,
    STEP_INPUTS,
    SYMBOLS,
    Binding,
    GraphShape,
    ScoringShape,
)

SCORING_FILE = "scoring.onnx"
# Sizes to trace with; no two alike, so that none is taken for another.
_TRACED = {"T": 5, "B": 2, "P": 7, "N": 4, "M": 6}
_TORCH_DTYPES = {
    "int32": torch.int32,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def export_onnx(decoder: Decoder, graph: GraphShape, folder: Path) -> Path:
    """Write model.onnx and its external data into `folder`; its path, after onnx's own check.

    Standard ops and this project's, in the decoder's dtype; every weight is stored once.
    """

    def arranged(of: OfBinding) -> tuple[Any, ...]:
        step = (*map(of, STEP_INPUTS), [*map(of, graph.pools)])
        if not graph.arriving:
            return step
        numbers, *blocks = map(of, graph.arriving)
        return (*step, numbers, blocks)

    return _written(StepGraph(decoder), graph, arranged, folder / MODEL_FILE)


def export_scoring_onnx(decoder: Decoder, graph: ScoringShape, folder: Path) -> Path:
    """The same of scoring.onnx: the first layers alone, for mode guided's pass over a plan."""

    def arranged(of: OfBinding) -> tuple[Any, ...]:
        return (*map(of, graph.tables), [*map(of, graph.pools)])

    return _written(ScoringGraph(decoder, graph.layers), graph, arranged, folder / SCORING_FILE)


OfBinding = Callable[[Binding], Any]
Arranged = Callable[[OfBinding], tuple[Any, ...]]
"""Something `of` each input, as the arguments of the module's `forward`."""


def _written(
    module: torch.nn.Module, graph: GraphShape | ScoringShape, arranged: Arranged, path: Path
) -> Path:
    with _quiet():
        program: Any = torch.onnx.export(
            module.eval(),
            arranged(_traced_tensor),
            dynamo=True,
            dynamic_shapes=arranged(_dynamic_shape(_dimensions())),
            input_names=[binding.name for binding in graph.inputs],
            output_names=[binding.name for binding in graph.outputs],
            custom_translation_table=translation_table(),
            external_data=True,
            verbose=False,
        )
    _forget_sources(program.model)
    program.save(str(path), external_data=True)
    onnx.checker.check_model(str(path))
    return path


def _traced_tensor(binding: Binding) -> Tensor:
    return torch.zeros(binding.sized(_TRACED), dtype=_TORCH_DTYPES[binding.dtype])


def _dimensions() -> dict[str, Any]:
    dimensions: dict[str, Any] = {symbol: torch.export.Dim(symbol) for symbol in SYMBOLS}
    return dimensions | {AFTER_B: dimensions["B"] + 1}


def _dynamic_shape(dimensions: dict[str, Any]) -> Any:
    def shape(binding: Binding) -> dict[int, Any]:
        return {i: dimensions[d] for i, d in enumerate(binding.shape) if isinstance(d, str)}

    return shape


def _forget_sources(model: Any) -> None:
    """Drop the exporter's notes on where in which source file each node came from."""
    for node in model.graph:
        node.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks on what is meant (inputs of one size share its name) or not ours to mend."""
    exporter = logging.getLogger("torch.onnx._internal.exporter")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*shares the same shape constraints.*")
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        exporter.setLevel(level)

"""From a decoder to model.onnx with its weights beside it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from legokv.built.folder import MODEL_FILE
from legokv.export.plugin_ops import translation_table
from legokv.export.step_graph import StepGraph
from legokv.model.decoder import Decoder
from legokv.step.graph import AFTER_B, STEP_INPUTS, SYMBOLS, Binding, GraphShape

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

    Standard ops and this project's two, in the decoder's dtype; every weight is stored once.
    """
    program = _exported(StepGraph(decoder).eval(), graph)
    _forget_sources(program.model)
    path = folder / MODEL_FILE
    program.save(str(path), external_data=True)
    onnx.checker.check_model(str(path))
    return path


def _exported(step: StepGraph, graph: GraphShape) -> Any:
    with _quiet():
        return torch.onnx.export(
            step,
            _arranged(graph, _traced_tensor),
            dynamo=True,
            dynamic_shapes=_arranged(graph, _dynamic_shape(_dimensions())),
            input_names=[binding.name for binding in graph.inputs],
            output_names=[binding.name for binding in graph.outputs],
            custom_translation_table=translation_table(),
            external_data=True,
            verbose=False,
        )


def _arranged(graph: GraphShape, of: Any) -> tuple[Any, ...]:
    """`of` each input, arranged as the arguments of `StepGraph.forward`."""
    step = (*(of(binding) for binding in STEP_INPUTS), [of(binding) for binding in graph.pools])
    if not graph.arriving:
        return step
    numbers, *blocks = (of(binding) for binding in graph.arriving)
    return (*step, numbers, blocks)


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

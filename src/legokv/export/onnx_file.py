"""From a decoder to model.onnx, or the scoring pass alone, with its weights beside it."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnxscript import ir
from torch import Tensor

from legokv.built.folder import MODEL_FILE, SCORING_MODEL_FILE
from legokv.export.plugin_ops import take_whole_products, translation_table
from legokv.export.step_graph import ScoringGraph, StepGraph
from legokv.model.decoder import Decoder
from legokv.ops.quantised_weight import FP8, QuantisedWeight
from legokv.step.graph import (
    AFTER_B,
    STEP_INPUTS,
    SYMBOLS,
    Binding,
    GraphShape,
    ScoringShape,
)

# Sizes to trace with; no two alike, so that none is taken for another.
_TRACED = {"T": 5, "B": 2, "P": 7, "N": 4, "M": 6}
# The first opset with INT4, blocks, and E4M3 in types that a bfloat16 graph has.
_OPSET = 21
_PREFIX = "decoder."
_TORCH_DTYPES = {
    "int32": torch.int32,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Quantised:
    """What products have Q/DQ nodes: weights by the decoder's names ("layers.0.qkv.weight"), and of
    FP8 what their inputs are divided by ("layers.0.qkv"); none of these for INT4."""

    weights: Mapping[str, QuantisedWeight] = field(default_factory=dict)
    input_scales: Mapping[str, float] = field(default_factory=dict)


def export_onnx(
    decoder: Decoder, graph: GraphShape, folder: Path, quantised: Quantised | None = None
) -> Path:
    """Write model.onnx and its external data into `folder`; its path, after onnx's own check.

    Standard ops and this project's, in the decoder's dtype; every weight is stored once. Those that
    are `quantised` stand there as such in the decoder's place of them.
    """

    def arranged(of: OfBinding) -> tuple[Any, ...]:
        step = (*map(of, STEP_INPUTS), [*map(of, graph.pools)])
        if not graph.arriving:
            return step
        numbers, *blocks = map(of, graph.arriving)
        return (*step, numbers, blocks)

    path = folder / MODEL_FILE
    return _written(StepGraph(decoder), graph, arranged, path, quantised or Quantised())


def export_scoring_onnx(
    decoder: Decoder, graph: ScoringShape, folder: Path, quantised: Quantised | None = None
) -> Path:
    """The same of scoring.onnx: the first layers alone, for mode guided's pass over a plan."""

    def arranged(of: OfBinding) -> tuple[Any, ...]:
        return (*map(of, graph.tables), [*map(of, graph.pools)])

    path, module = folder / SCORING_MODEL_FILE, ScoringGraph(decoder, graph.layers)
    return _written(module, graph, arranged, path, _of_first(quantised, graph.layers.stop))


def _of_first(quantised: Quantised | None, num_layers: int) -> Quantised:
    """What is quantised of so many layers, whose last ends with its q, k and v."""
    if quantised is None:
        return Quantised()
    begin = (*(f"layers.{n}." for n in range(num_layers - 1)), f"layers.{num_layers - 1}.qkv.")
    weights = {name: w for name, w in quantised.weights.items() if name.startswith(begin)}
    return Quantised(weights, quantised.input_scales)


OfBinding = Callable[[Binding], Any]
Arranged = Callable[[OfBinding], tuple[Any, ...]]
"""Something `of` each input, as the arguments of the module's `forward`."""


def _written(
    module: torch.nn.Module,
    graph: GraphShape | ScoringShape,
    arranged: Arranged,
    path: Path,
    quantised: Quantised,
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
    take_whole_products(program.model)
    _put_quantised(program.model, quantised)
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


def _put_quantised(model: Any, quantised: Quantised) -> None:
    """Put Q/DQ nodes in front of products, and weights in the place of the initializers of their
    names: DequantizeLinear, and of FP8 the input through QuantizeLinear, as TensorRT knows them.
    """
    if not quantised.weights:
        return
    model.opset_imports[""] = _OPSET
    products = {node.inputs[1].name: node for node in model.graph if node.op_type == "Gemm"}
    for name, weight in quantised.weights.items():
        nodes = _Nodes(model.graph, products[_PREFIX + name], name.removesuffix(".weight"))
        nodes.dequantise_weight(weight)
        if weight.numbers.dtype == FP8:
            nodes.quantise_input(quantised.input_scales[nodes.name])
        del model.graph.initializers[_PREFIX + name]


class _Nodes:
    """Puts nodes before one product of a graph, which is called by its layer and `name`."""

    def __init__(self, graph: Any, product: Any, name: str) -> None:
        self._graph, self._product, self.name = graph, product, name

    def dequantise_weight(self, weight: QuantisedWeight) -> None:
        numbers = self._constant("weight.numbers", _numbers(weight), weight.shape)
        scales = self._constant("weight.scales", _bfloat16(weight.scales), weight.scales.shape)
        attributes: dict[str, int] = {}
        if weight.scales.ndim:
            attributes["axis"] = 1 if weight.block else 0
        if weight.block:
            attributes["block_size"] = weight.block
        self._read(1, self._node("DequantizeLinear", [numbers, scales], "weight.dense", attributes))

    def quantise_input(self, scale: float) -> None:
        one = self._constant("input.scale", np.array(scale, ml_dtypes.bfloat16), ())
        zero = self._constant("input.zero", np.array(0, ml_dtypes.float8_e4m3fn), ())
        x = self._product.inputs[0]
        numbers = self._node("QuantizeLinear", [x, one, zero], "input.numbers", {})
        self._read(0, self._node("DequantizeLinear", [numbers, one], "input.near", {}))

    def _read(self, number: int, value: Any) -> None:
        self._product.replace_input_with(number, value)

    def _node(self, op: str, inputs: list[Any], name: str, attributes: dict[str, int]) -> Any:
        node = ir.node(op, inputs, attributes, name=f"{self.name}.{name}")
        node.outputs[0].name = f"{self.name}.{name}"
        self._graph.insert_before(self._product, node)
        return node.outputs[0]

    def _constant(self, name: str, array: Any, shape: tuple[int, ...]) -> Any:
        tensor = ir.Tensor(array, name=f"{_PREFIX}{self.name}.{name}")
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value


def _numbers(weight: QuantisedWeight) -> Any:
    if weight.numbers.dtype == FP8:
        return weight.numbers.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return weight.numbers.numpy().astype(ml_dtypes.int4)


def _bfloat16(tensor: Tensor) -> Any:
    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)

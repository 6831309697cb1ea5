"""A graph with Q/DQ nodes has the eager model's numbers, by onnx's own meaning of the nodes, and
computes what that model computes with them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from graph_session import GraphSession, graph_runner, shape_of
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_by_torch import constant, run_node, torch_execution
from texts import random_ids
from torch import Tensor

from legokv.build.calibration import products_of, run_text
from legokv.built.folder import read_engine_folder
from legokv.checkpoint.weights import dense_weight, load_kept_weights
from legokv.export import Quantised, export_onnx
from legokv.model.decoder import Decoder, decoder_from_weights
from legokv.model.dtypes import PLAN_FORMS
from legokv.ops.quantised_weight import QuantisedWeight, fake_fp8
from legokv.step.batch import step_batch
from legokv.step.sequence import chunk_sequence

NUM_PAGES = 8
# As in the other export tests: both sides round each op to bfloat16, in another order.
TOLERANCE = 6e-2


@dataclass(frozen=True)
class Exported:
    """The file, the eager model of its weights, and what stands there as Q/DQ."""

    folder: Path
    file: Path
    decoder: Decoder
    quantised: Quantised


@pytest.fixture(scope="module")
def exported(
    tiny_engine_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """Of a tiny Llama with biases and a head of its own, in either form; made once."""

    @cache
    def made(form: str) -> Exported:
        folder = tiny_engine_folder("llama-biased")
        model = read_engine_folder(folder).model
        kept = load_kept_weights(folder, model, torch.bfloat16, PLAN_FORMS[form])
        weights = {name: each for name, each in kept.items() if isinstance(each, QuantisedWeight)}
        dense = {name: dense_weight(each, torch.bfloat16) for name, each in kept.items()}
        decoder = decoder_from_weights(model, dense)
        scales = dict.fromkeys(products_of(decoder), 0.03125) if form == "fp8" else {}
        quantised = Quantised(weights, scales)
        graph = shape_of(folder, "bfloat16", "stream")
        file = export_onnx(decoder, graph, tmp_path_factory.mktemp(form), quantised)
        return Exported(folder, file, decoder, quantised)

    return made


def expanded(file: Path) -> dict[str, Tensor]:
    """Each product's weight as onnx's own evaluator expands it, by the product's name."""
    model = onnx.load(file)
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            constants = [arrays[name] for name in node.input]
            out = helper.make_tensor_value_info(
                node.output[0], onnx.TensorProto.BFLOAT16, [None, None]
            )
            graph = helper.make_graph([node], "w", [], [out], constants)
            opsets = [helper.make_opsetid("", 21)]
            alone = helper.make_model(graph, opset_imports=opsets, ir_version=10)
            made = ReferenceEvaluator(alone).run(None, {})[0]
            name = node.output[0].removesuffix(".weight.dense")
            found[name] = torch.from_numpy(made.astype("float32"))
    return found


@pytest.mark.parametrize("form", PLAN_FORMS)
def test_the_graph_has_the_eager_model_s_numbers(
    exported: Callable[[str], Exported], form: str
) -> None:
    made = exported(form)
    found = expanded(made.file)
    assert set(found) == set(products_of(made.decoder))
    for product, weight in found.items():
        expected = made.decoder.get_submodule(product).weight
        assert torch.equal(weight.bfloat16(), expected), product


@pytest.mark.parametrize("form", PLAN_FORMS)
def test_each_product_of_the_graph_is_the_eager_model_s_with_rounded_inputs(
    exported: Callable[[str], Exported], form: str
) -> None:
    made = exported(form)
    graph = onnx.load(made.file).graph
    constants = {tensor.name: constant(tensor) for tensor in graph.initializer}
    for name, product in products_of(made.decoder).items():
        # Some of it is past what FP8 has with this scale.
        x = (torch.randn(9, product.in_features, generator=seeded(name)) * 5).bfloat16()
        found = by_its_nodes(graph, constants, name, x)
        near = fake_fp8(x, made.quantised.input_scales[name]) if form == "fp8" else x
        assert torch.equal(near, x) == (form == "int4")
        expected = product.forward(near)
        most = 0.01 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=most)


def by_its_nodes(
    graph: onnx.GraphProto, constants: dict[str, Tensor], name: str, x: Tensor
) -> Tensor:
    """What the nodes around one product make of its input."""
    made_by = {node.output[0]: node for node in graph.node}
    (product,) = (node for node in graph.node if f"{name}.weight.dense" in node.input)
    nodes = [made_by[f"{name}.weight.dense"], product]
    first = made_by[product.input[0]]
    if first.op_type == "DequantizeLinear":
        nodes[:0] = [made_by[first.input[0]], first]
    values = {**constants, nodes[0 if len(nodes) == 4 else 1].input[0]: x}
    for node in nodes:
        values[node.output[0]] = run_node(node, [values[each] for each in node.input])[0]
    return values[product.output[0]]


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(name.encode()))


def test_a_graph_of_int4_computes_the_eager_model_s_logits(
    exported: Callable[[str], Exported], record_property: Callable[[str, object], None]
) -> None:
    # Not FP8's: an input between two of its numbers falls to either side, and few bits tell much.
    made = exported("int4")
    ids = random_ids(3, 40)
    expected = run_text(made.decoder, ids, [len(ids) - 1])
    logits = by_the_graph(made.folder, made.file, ids)
    worst = float((logits - expected).abs().max() / expected.abs().max())
    record_property("fact", f"within {worst:.1e} of the largest logit")
    assert worst < TOLERANCE


def by_the_graph(folder: Path, file: Path, ids: list[int]) -> Tensor:
    session = GraphSession(torch_execution(file))
    runner = graph_runner(folder, "bfloat16", session, NUM_PAGES, imports="stream")
    size = runner.page_size
    sequence = chunk_sequence(tuple(ids), list(range(-(-len(ids) // size))), size)
    return runner.run(step_batch([sequence.next(len(ids))]))


@pytest.mark.parametrize(
    ("form", "kind", "most_bits"), [("int4", "INT4", 4), ("fp8", "FLOAT8E4M3FN", 8)]
)
def test_the_file_keeps_products_in_few_bits_once_and_all_else_in_the_model_s_type(
    exported: Callable[[str], Exported], form: str, kind: str, most_bits: int
) -> None:
    made = exported(form)
    file = made.file
    model = onnx.load(file, load_external_data=False)
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    for name in made.quantised.weights:
        assert f"decoder.{name}" not in kinds
        assert kinds[f"decoder.{name}.numbers"] == kind
        assert kinds[f"decoder.{name}.scales"] == "BFLOAT16"
    assert kinds["decoder.embed.weight"] == kinds["decoder.head.weight"] == "BFLOAT16"
    numbers = {t.name: t for t in onnx.load(file).graph.initializer if t.name.endswith(".numbers")}
    for tensor in numbers.values():
        array = numpy_helper.to_array(tensor)
        assert len(tensor.raw_data) * 8 == array.size * most_bits
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 21

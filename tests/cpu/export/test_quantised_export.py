"""A graph with Q/DQ nodes has the eager model's numbers, by onnx's own meaning of the nodes, and
computes what that model computes with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from graph_session import GraphSession, graph_runner, shape_of
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_by_torch import torch_execution
from texts import random_ids
from torch import Tensor

from legokv.build.calibration import products_of, run_text
from legokv.built.folder import read_engine_folder
from legokv.checkpoint.weights import dense_weight, load_kept_weights
from legokv.export import Quantised, export_onnx
from legokv.model.decoder import Decoder, decoder_from_weights
from legokv.model.dtypes import PLAN_FORMS
from legokv.ops.quantised_weight import QuantisedWeight, fp8_near
from legokv.step.batch import step_batch
from legokv.step.sequence import chunk_sequence

NUM_PAGES = 8
# As in the other export tests: both sides round each op to bfloat16, in another order. FP8 rounds
# an input that lies between two of its numbers to one side here, to the other there.
TOLERANCES = {"int4": 6e-2, "fp8": 8e-2}


@dataclass(frozen=True)
class Exported:
    """The file, the eager model of its weights, and what stands there as Q/DQ."""

    form: str
    folder: Path
    file: Path
    decoder: Decoder
    quantised: Quantised


@pytest.fixture(scope="module", params=PLAN_FORMS)
def exported(
    request: pytest.FixtureRequest,
    tiny_engine_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """Of a tiny Llama with biases and a head of its own."""
    folder, form = tiny_engine_folder("llama-biased"), request.param
    facts = read_engine_folder(folder)
    kept = load_kept_weights(folder, facts.model, torch.bfloat16, PLAN_FORMS[form])
    weights = {name: each for name, each in kept.items() if isinstance(each, QuantisedWeight)}
    dense = {name: dense_weight(each, torch.bfloat16) for name, each in kept.items()}
    decoder = decoder_from_weights(facts.model, dense)
    scales = dict.fromkeys(products_of(decoder), 0.03125) if form == "fp8" else {}
    quantised = Quantised(weights, scales)
    graph = shape_of(folder, "bfloat16", "stream")
    file = export_onnx(decoder, graph, tmp_path_factory.mktemp(form), quantised)
    return Exported(form, folder, file, decoder, quantised)


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


def rounded_inputs(decoder: Decoder, scales: Mapping[str, float]) -> None:
    """Have the eager model's products round their inputs as the graph's nodes do."""
    for name, product in products_of(decoder).items():
        scale = scales[name]
        product.register_forward_pre_hook(
            lambda _, inputs, scale=scale: (fp8_near(inputs[0], scale), *inputs[1:])
        )


def test_the_graph_has_the_eager_model_s_numbers(exported: Exported) -> None:
    found = expanded(exported.file)
    assert set(found) == set(products_of(exported.decoder))
    for product, weight in found.items():
        expected = exported.decoder.get_submodule(product).weight
        assert torch.equal(weight.bfloat16(), expected), product


def test_the_graph_computes_the_eager_model_s_logits(
    exported: Exported, record_property: Callable[[str, object], None]
) -> None:
    ids = random_ids(3, 40)
    if exported.form == "fp8":
        rounded_inputs(exported.decoder, exported.quantised.input_scales)
    expected = run_text(exported.decoder, ids, [len(ids) - 1])
    logits = by_the_graph(exported.folder, exported.file, ids)
    worst = float((logits - expected).abs().max() / expected.abs().max())
    record_property("fact", f"{exported.form}: within {worst:.1e} of the largest logit")
    assert worst < TOLERANCES[exported.form]


def by_the_graph(folder: Path, file: Path, ids: list[int]) -> Tensor:
    session = GraphSession(torch_execution(file))
    runner = graph_runner(folder, "bfloat16", session, NUM_PAGES, imports="stream")
    size = runner.page_size
    sequence = chunk_sequence(tuple(ids), list(range(-(-len(ids) // size))), size)
    return runner.run(step_batch([sequence.next(len(ids))]))


def test_the_file_keeps_products_in_few_bits_once_and_all_else_in_the_model_s_type(
    exported: Exported,
) -> None:
    kind, most_bits = {"int4": ("INT4", 4), "fp8": ("FLOAT8E4M3FN", 8)}[exported.form]
    file = exported.file
    model = onnx.load(file, load_external_data=False)
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    for name in exported.quantised.weights:
        assert f"decoder.{name}" not in kinds
        assert kinds[f"decoder.{name}.numbers"] == kind
        assert kinds[f"decoder.{name}.scales"] == "BFLOAT16"
    assert kinds["decoder.embed.weight"] == kinds["decoder.head.weight"] == "BFLOAT16"
    numbers = {t.name: t for t in onnx.load(file).graph.initializer if t.name.endswith(".numbers")}
    for tensor in numbers.values():
        array = numpy_helper.to_array(tensor)
        assert len(tensor.raw_data) * 8 == array.size * most_bits
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 21

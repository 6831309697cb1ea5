"""What TensorRT-RTX makes, without a GPU, of products with FP8 and INT4 weights as Q/DQ nodes:
alone, and in the plans that `--quantize` builds.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from plan_builds import settings_of

from legokv import Engine, EngineSettings
from legokv.build.calibration import run_text
from legokv.build.engine import BuildSettings, build_engine_folder
from legokv.build.gate import PASSAGES
from legokv.built.folder import read_engine_folder
from legokv.built.plan_limits import PlanLimits
from legokv.built.seal import CALIBRATION_FILE
from legokv.checkpoint import load_weights
from legokv.errors import EngineMismatch
from legokv.model.decoder import decoder_from_weights
from legokv.model.dtypes import PLAN_FORMS
from legokv.plan.builders import strongly_typed_builder

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
NUM_IN, NUM_OUT = 256, 128
FP8 = ml_dtypes.float8_e4m3fn
Arrays = dict[str, np.ndarray]


def model_of(nodes: list[onnx.NodeProto], arrays: Arrays) -> bytes:
    shapes = (("x", NUM_IN), ("y", NUM_OUT))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["T", size])
        for name, size in shapes
    )
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "product", [x], [y], constants)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def fp8_product(scale_shape: tuple[int, ...]) -> bytes:
    """x and the weight in FP8: one scale for x, one for the weight or one an output."""
    arrays = {
        "x_scale": np.array(0.02, ml_dtypes.bfloat16),
        "x_zero": np.array(0, FP8),
        "weight": np.random.default_rng(0).normal(size=(NUM_IN, NUM_OUT)).astype(FP8),
        "scale": np.full(scale_shape, 0.01, ml_dtypes.bfloat16),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "x_scale"], ["x_near"]),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"], axis=1),
        helper.make_node("MatMul", ["x_near", "w"], ["y"]),
    ]
    return model_of(nodes, arrays)


def int4_product(block: int, axis: int) -> bytes:
    """The weight alone in INT4, with a scale for each block along `axis`: 0 inputs, 1 outputs."""
    weight = np.random.default_rng(0).integers(-7, 8, size=(NUM_IN, NUM_OUT))
    scales = [NUM_IN, NUM_OUT]
    scales[axis] //= block
    arrays = {
        "weight": weight.astype(ml_dtypes.int4),
        "scale": np.full(scales, 0.01, ml_dtypes.bfloat16),
    }
    blocks = {"axis": axis, "block_size": block}
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"], **blocks),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model_of(nodes, arrays)


def layers_built(model: bytes) -> list[str]:
    """The builder's own lines, one a layer of the plan that it made of the model."""
    objects = strongly_typed_builder(trt)
    parser = trt.OnnxParser(objects.network, objects.logger)
    assert parser.parse(model), parser.get_error(0).desc()
    objects.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = objects.builder.create_optimization_profile()
    profile.set_shape("x", *((tokens, NUM_IN) for tokens in (1, 64, 256)))
    objects.config.add_optimization_profile(profile)
    assert objects.serialize() is not None
    assert objects.lists is not None
    return [line for said in objects.lists for line in said.splitlines()]


@pytest.mark.parametrize("scale_shape", [(), (NUM_OUT,)], ids=["one scale", "one an output"])
def test_an_fp8_product_is_computed_in_fp8(scale_shape: tuple[int, ...]) -> None:
    products = [line for line in layers_built(fp8_product(scale_shape)) if "gemm" in line]
    assert products
    assert all(line.count("Datatype: FP8") == 2 for line in products)


@pytest.mark.parametrize("block", [128, 64, 32, 16])
def test_int4_blocks_along_the_inputs_are_expanded_in_the_products_own_kernel(block: int) -> None:
    lines = [line for line in layers_built(int4_product(block, axis=0)) if "Int4" in line]
    assert [line.count("runtime_fusion") for line in lines] == [1]


def test_int4_blocks_along_the_outputs_are_expanded_to_bfloat16_before_the_product() -> None:
    lines = layers_built(int4_product(128, axis=1))
    assert [line for line in lines if "gemm" in line and "Int4" not in line]
    assert not [line for line in lines if "runtime_fusion" in line]


@pytest.fixture(scope="module")
def quantised(
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, str]]:
    """A tiny Llama's engine folder with such a plan, and what was said meanwhile; made once."""
    made: dict[str, tuple[Path, str]] = {}

    def engine(form: str) -> tuple[Path, str]:
        if form not in made:
            said: list[str] = []
            output = tmp_path_factory.mktemp(form) / "e"
            settings = quantised_settings(form, plugin_library)
            build_engine_folder(tiny_checkpoint("llama-wide"), output, settings, say=said.append)
            made[form] = output, "\n".join(said)
        return made[form]

    return engine


def quantised_settings(form: str, library: Path) -> BuildSettings:
    # So few tokens a step have no profile for links.
    plain = replace(settings_of("llama-wide", library), limits=PlanLimits(64, 2, 4))
    return replace(plain, weights=PLAN_FORMS[form], samples=PASSAGES)


def products_in(folder: Path) -> list[dict[str, Any]]:
    """The layers of the plan's own report that multiply weights."""
    listed = json.loads((folder / "tensorrt-rtx.layers.json").read_text(encoding="utf-8"))
    return [each for each in listed["layers"] if each["kind"] in ("gemm", "runtime_fusion")]


def test_every_product_of_a_layer_is_in_the_form_that_the_build_was_asked_for(
    quantised: Callable[[str], tuple[Path, str]], record_property: Callable[[str, object], None]
) -> None:
    for form, kind in (("fp8", "FP8"), ("int4", "Int4")):
        folder, said = quantised(form)
        products = products_in(folder)
        of_layers = [each for each in products if kind in each["weights"]]
        # Three layers of four products, in each of two profiles; the heads are what is left.
        assert len(of_layers) == 3 * 4 * 2
        assert len(products) == len(of_layers) + 2
        inputs = {each["inputs"][0]["dtype"] for each in of_layers}
        assert inputs == {"FP8" if form == "fp8" else "BFloat16"}
        # From the first attention of three to the last.
        assert said.count(f"3 PackedLegoLinkAttention, 8 kernels read {kind} weights; ") == 2, said
        record_property("fact", [line for line in said.splitlines() if "profile decode" in line])
        facts = read_engine_folder(folder)
        assert facts.weights == PLAN_FORMS[form]
        assert facts.gate is not None
        assert facts.gate.passed
        assert facts.gate.kl_weights


def test_a_rebuild_repeats_the_calibration_and_a_changed_one_is_another_model(
    quantised: Callable[[str], tuple[Path, str]],
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder, said = quantised("fp8")
    assert "Calibrating FP8 over 3 texts of " in said
    again: list[str] = []
    # Other texts would give other scales: those of the folder are taken.
    settings = replace(quantised_settings("fp8", plugin_library), samples=("Another text.",))
    assert not build_engine_folder(
        tiny_checkpoint("llama-wide"), folder, settings, say=again.append
    )
    assert [line for line in again if line.startswith("FP8's calibration is kept: 3 texts of ")]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / CALIBRATION_FILE
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(" texts of ", " books of "), encoding="utf-8")
    with pytest.raises(EngineMismatch, match="its weights or tokenizer or calibration are now of"):
        Engine.open(copy, settings=EngineSettings(runner="torch"))


def test_cpus_compute_with_the_numbers_of_the_plan(
    quantised: Callable[[str], tuple[Path, str]],
) -> None:
    folder, _ = quantised("int4")
    engine = Engine.open(folder, settings=EngineSettings(runner="torch", pool_tokens=1024))
    ids = list(range(5, 40))
    facts = read_engine_folder(folder)
    weights = load_weights(folder, facts.model, torch.bfloat16, facts.weights)
    expected = run_text(decoder_from_weights(facts.model, weights), ids, [len(ids) - 1])[0]
    found = engine.prefill([ids]).logits
    assert (found - expected).abs().max() < 0.06 * expected.abs().max()

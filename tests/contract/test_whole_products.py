"""Attention that takes a product whole, in plans that TensorRT-RTX builds without a GPU: against
the same models as exporters from before made them, with a split in front of each attention.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch

from legokv.build.calibration import products_of
from legokv.built.folder import read_engine_folder
from legokv.built.plan_limits import PlanLimits, plan_profiles
from legokv.checkpoint.weights import dense_weight, load_kept_weights
from legokv.export import onnx_file
from legokv.model.decoder import decoder_from_weights
from legokv.model.dtypes import PLAN_FORMS, Dtypes
from legokv.ops.quantised_weight import QuantisedWeight
from legokv.plan.process import build_plan
from legokv.plan.request import PlanFiles, plan_request
from legokv.step.graph import IMPORTS, ImportBy, graph_shape

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")
NUM_LAYERS = 3
Built = Callable[..., "BuiltPlan"]


@dataclass(frozen=True)
class BuiltPlan:
    """kernels: the layers of the plan's own list that put something on a stream."""

    num_nodes: int
    plugins: dict[str, int]
    kernels: list[str]


@pytest.fixture
def built(plugin_library: Path, tiny_engine_folder: Callable[[str], Path], tmp_path: Path) -> Built:
    """The plan of a tiny model's prefill steps, from its weights in one of their forms."""

    def plan(name: str, form: str = "model", imports: ImportBy = "stream") -> BuiltPlan:
        engine = tiny_engine_folder(name)
        config = read_engine_folder(engine).model
        kept = load_kept_weights(engine, config, torch.bfloat16, PLAN_FORMS.get(form, form))
        dense = {name: dense_weight(each, torch.bfloat16) for name, each in kept.items()}
        decoder = decoder_from_weights(config, dense)
        quantised = onnx_file.Quantised(
            {name: each for name, each in kept.items() if isinstance(each, QuantisedWeight)},
            dict.fromkeys(products_of(decoder), 0.03125),
        )
        graph = graph_shape(config, Dtypes.same("bfloat16"), 16, imports)
        model = onnx_file.export_onnx(decoder, graph, tmp_path, quantised)
        files = PlanFiles(model, tmp_path / "whole.plan", plugin_library)
        profiles = plan_profiles(config, graph, PlanLimits(64, 2, 4))[:1]
        summary = build_plan(plan_request("tensorrt-rtx", graph, profiles, files), print)
        listed = json.loads(files.layers.read_text(encoding="utf-8"))["layers"]
        nothing = ("NoOp", "Constant", "shape_call")
        return BuiltPlan(
            len(onnx.load(model, load_external_data=False).graph.node),
            summary.plugins,
            [each["name"] for each in listed if each["kind"] not in nothing],
        )

    return plan


def splitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export as before: attention has three inputs whatever they are parts of."""
    monkeypatch.setattr(onnx_file, "take_whole_products", lambda model: None)


def copies(plan: BuiltPlan) -> int:
    """How many parts of tensors TensorRT-RTX's kernels copy out, but for the gates' halves."""
    return sum(kernel.count("Slic") for kernel in plan.kernels if "Silu" not in kernel)


# FP8's three copies are in one kernel with the product's scale, which is there all the same.
@pytest.mark.parametrize(("form", "saved"), [("model", 3), ("int4", 3), ("fp8", 0)])
def test_a_product_taken_whole_saves_the_three_copies_a_layer_and_the_kernels_they_take(
    built: Built,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    form: str,
    saved: int,
) -> None:
    whole = built("llama-wide", form)
    splitting(monkeypatch)
    apart = built("llama-wide", form)
    assert whole.plugins == {"PackedLegoLinkAttention": NUM_LAYERS}
    assert apart.plugins == {"LegoLinkAttention": NUM_LAYERS}
    assert (copies(apart), copies(whole)) == (3 * NUM_LAYERS, 0)
    assert len(apart.kernels) - len(whole.kernels) == saved * NUM_LAYERS
    numbers = [f"{len(each.kernels)} kernels, {each.num_nodes} nodes" for each in (apart, whole)]
    record_property("fact", f"llama-wide, {form}, split and whole: {'; '.join(numbers)}")


@pytest.mark.parametrize("imports", IMPORTS)
def test_a_model_with_biases_in_its_product_has_no_kernel_that_copies_parts(
    built: Built, imports: ImportBy
) -> None:
    plan = built("qwen2-wide", imports=imports)
    assert plan.plugins["PackedLegoLinkAttention"] == NUM_LAYERS
    assert copies(plan) == 0


def test_a_model_with_norms_behind_its_product_is_the_plan_that_it_was(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = built("qwen3-wide")
    assert plan.plugins == {"LegoLinkAttention": NUM_LAYERS}
    splitting(monkeypatch)
    assert len(built("qwen3-wide").kernels) == len(plan.kernels)

"""Executes model.onnx on the CPU in a plan's place, our two ops by their own bodies.

`TensorRTRunner` over it is the real runner with the real file; only TensorRT is not there.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from onnx_by_torch import torch_execution
from onnx_reference import Execution
from torch import Tensor

from legokv.built.folder import read_engine_folder
from legokv.built.plan_facts import PlanFacts
from legokv.built.plan_limits import PREFILL, PlanLimits, plan_profiles, scoring_profile
from legokv.checkpoint import load_weights
from legokv.export import export_onnx, export_scoring_onnx
from legokv.model.config import scoring_layers
from legokv.model.decoder import decoder_from_weights
from legokv.model.dtypes import Dtypes
from legokv.runners.page_store import PageStore
from legokv.runners.plan.contexts import PlanSession, addresses
from legokv.runners.plan.runner import ScoringPlan, TensorRTRunner
from legokv.step.graph import GraphShape, ImportBy, ScoringShape, graph_shape

LIMITS = PlanLimits(max_step_tokens=64, max_sequences=8, max_import_pages=4)


class GraphSession:
    """A `PlanSession` over an ONNX file's execution that checks where its tensors lie."""

    def __init__(self, execute: Execution) -> None:
        self._execute = execute
        self._addresses: dict[str, int] = {}
        self.runs: list[tuple[int, dict[str, tuple[int, ...]]]] = []

    def run(self, profile: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]):
        self._check_addresses(inputs, outputs)
        arriving = inputs["import_pages"].tolist() if "import_pages" in inputs else []
        assert len(set(arriving)) == len(arriving), "a page named twice holds either of its blocks"
        self.runs.append((profile, {name: tuple(t.shape) for name, t in inputs.items()}))
        made = self._execute(list(outputs), inputs)
        for tensor, result in zip(outputs.values(), made, strict=True):
            assert (tensor.shape, tensor.dtype) == (result.shape, result.dtype)
            tensor.copy_(result)

    def _check_addresses(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        for name, address in addresses({**inputs, **outputs}).items():
            assert address == self._addresses.setdefault(name, address), f"{name} moved"
        for name in outputs:
            if name.startswith("pool_out_"):
                pool = name.replace("pool_out", "pool")
                assert outputs[name].data_ptr() == inputs[pool].data_ptr(), f"{name} is elsewhere"


def shape_of(folder: Path, dtype: str, imports: ImportBy = "plugin") -> GraphShape:
    facts = read_engine_folder(folder)
    return graph_shape(facts.model, Dtypes.same(dtype), facts.page_size, imports)


def export_engine(folder: Path, dtype: str, target: Path, imports: ImportBy = "plugin") -> Path:
    """model.onnx of an engine folder's weights in `dtype`, written into `target`."""
    model = read_engine_folder(folder).model
    weights = load_weights(folder, model, getattr(torch, dtype))
    graph = shape_of(folder, dtype, imports)
    return export_onnx(decoder_from_weights(model, weights), graph, target)


def plan_of(folder: Path, dtype: str, limits: PlanLimits = LIMITS) -> PlanFacts:
    profiles = plan_profiles(read_engine_folder(folder).model, shape_of(folder, dtype), limits)
    return PlanFacts("none", "0", "any", "none.plan", "none.so", "00", limits, profiles)


def graph_runner(  # noqa: PLR0913 - what a runner is made of
    folder: Path,
    dtype: str,
    session: PlanSession,
    num_pages: int,
    limits: PlanLimits = LIMITS,
    imports: ImportBy = "plugin",
    scoring: ScoringPlan | str = "which the test's plan does not say",
) -> TensorRTRunner:
    plan, graph = plan_of(folder, dtype, limits), shape_of(folder, dtype, imports)
    store = PageStore(graph, num_pages, torch.device("cpu"))
    return TensorRTRunner(session, plan, graph, store, scoring)


def graph_scoring(
    folder: Path, dtype: str, target: Path, limits: PlanLimits, imports: ImportBy
) -> ScoringPlan:
    """scoring.onnx of the same weights in its plan's place, written into `target`."""
    model = read_engine_folder(folder).model
    decoder = decoder_from_weights(model, load_weights(folder, model, getattr(torch, dtype)))
    shape = ScoringShape(shape_of(folder, dtype, imports), scoring_layers(model.num_layers))
    execution = torch_execution(export_scoring_onnx(decoder, shape, target))
    profile = scoring_profile(plan_of(folder, dtype, limits).profiles[PREFILL])
    return ScoringPlan(lambda: GraphSession(execution), shape, profile, model.num_heads)

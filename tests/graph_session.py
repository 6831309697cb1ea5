"""Executes model.onnx on the CPU in a plan's place: the reference evaluator, our ops' own bodies.

`TensorRTRunner` over it is the real runner with the real file; only TensorRT is not there.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from legokv.bindings import GraphShape, graph_shape
from legokv.checkpoint import load_weights
from legokv.engine_folder import read_engine_folder
from legokv.export import export_onnx
from legokv.export.plugin_ops import DOMAIN, TORCH_OPS, plugin_schemas
from legokv.model.decoder import decoder_from_weights
from legokv.plan_facts import PlanFacts
from legokv.profiles import PlanLimits, plan_profiles
from legokv.runners.tensorrt_runner import TensorRTRunner

LIMITS = PlanLimits(max_step_tokens=64, max_sequences=8, max_import_pages=4)


class KvImport(OpRun):
    op_domain = DOMAIN

    def _run(self, *inputs, plugin_version, plugin_namespace):
        assert (plugin_version, plugin_namespace) == ("1", "legokv")
        tensors = [torch.from_numpy(np.array(given)) for given in inputs]
        return (TORCH_OPS["KvImport"](*tensors).numpy(),)


class LegoLinkAttention(OpRun):
    op_domain = DOMAIN

    def _run(self, *inputs, scale, plugin_version, plugin_namespace):
        assert (plugin_version, plugin_namespace) == ("1", "legokv")
        tensors = [torch.from_numpy(np.array(given)) for given in inputs]
        return tuple(t.numpy() for t in TORCH_OPS["LegoLinkAttention"](*tensors, scale))


class GraphSession:
    """A `PlanSession` over an ONNX file, float32 or float16, that checks where its tensors lie."""

    def __init__(self, model: Path) -> None:
        plugin_schemas()
        self._evaluator = ReferenceEvaluator(str(model), new_ops=[KvImport, LegoLinkAttention])
        self._addresses: dict[str, int] = {}
        self.runs: list[tuple[int, dict[str, tuple[int, ...]]]] = []

    def run(self, profile: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]):
        self._check_addresses(inputs, outputs)
        arriving = inputs["import_pages"].tolist()
        assert len(set(arriving)) == len(arriving), "a page named twice holds either of its blocks"
        self.runs.append((profile, {name: tuple(t.shape) for name, t in inputs.items()}))
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        made = self._evaluator.run(list(outputs), given)
        for tensor, result in zip(outputs.values(), made, strict=True):
            assert tensor.shape == result.shape
            tensor.copy_(torch.from_numpy(np.array(result)))

    def _check_addresses(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        for name, tensor in (*inputs.items(), *outputs.items()):
            # An empty tensor has no address.
            if tensor.numel():
                first = self._addresses.setdefault(name, tensor.data_ptr())
                assert tensor.data_ptr() == first, f"{name} moved"
        for name in outputs:
            if name.startswith("pool_out_"):
                pool = name.replace("pool_out", "pool")
                assert outputs[name].data_ptr() == inputs[pool].data_ptr(), f"{name} is elsewhere"


def shape_of(folder: Path, dtype: str) -> GraphShape:
    facts = read_engine_folder(folder)
    return graph_shape(facts.model, dtype, facts.page_size)


def export_engine(folder: Path, dtype: str, target: Path) -> Path:
    """model.onnx of an engine folder's weights in `dtype`, written into `target`."""
    model = read_engine_folder(folder).model
    weights = load_weights(folder, model, getattr(torch, dtype))
    return export_onnx(decoder_from_weights(model, weights), shape_of(folder, dtype), target)


def plan_of(folder: Path, dtype: str, limits: PlanLimits = LIMITS) -> PlanFacts:
    profiles = plan_profiles(read_engine_folder(folder).model, shape_of(folder, dtype), limits)
    return PlanFacts("none", "0", "any", "none.plan", "none.so", "00", limits, profiles)


def graph_runner(folder: Path, dtype: str, session: GraphSession, num_pages: int) -> TensorRTRunner:
    graph = shape_of(folder, dtype)
    device = torch.device("cpu")
    return TensorRTRunner(session, plan_of(folder, dtype), graph, num_pages, device)

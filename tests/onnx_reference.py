"""Executes an ONNX file on the CPU by onnx's own reference evaluator, our ops by their bodies."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from legokv.export.plugin_ops import DOMAIN, TORCH_OPS, plugin_schemas

Execution = Callable[[Sequence[str], Mapping[str, Tensor]], list[Tensor]]
"""(names of outputs, inputs by name) -> the outputs."""


class PluginOp(OpRun):
    op_domain = DOMAIN

    def _run(self, *inputs, plugin_version, plugin_namespace, **numbers):
        assert (plugin_version, plugin_namespace) == ("1", "legokv")
        tensors = [torch.from_numpy(np.array(given)) for given in inputs]
        made = TORCH_OPS[type(self).__name__](*tensors, **numbers)
        return tuple(t.numpy() for t in (made if isinstance(made, tuple) else (made,)))


OPS = [type(name, (PluginOp,), {}) for name in TORCH_OPS]


def reference_execution(model: Path) -> Execution:
    """Of a float32 or float16 file: numpy has no bfloat16 of its own."""
    plugin_schemas()
    evaluator = ReferenceEvaluator(str(model), new_ops=OPS)

    def execute(names: Sequence[str], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        made = evaluator.run(list(names), {name: given.numpy() for name, given in inputs.items()})
        return [torch.from_numpy(np.array(result)) for result in made]

    return execute

"""The stand-ins' methods are those of TensorRT-RTX's classes, parameter by parameter.

TensorRT can't be installed here; its Python and TensorRT-RTX's are made from the same interfaces.
"""

import inspect
import re
from typing import Any

import pytest
import tensorrt_runtime_standin as runtime
import tensorrt_standin as build

from legokv.built.plan_facts import PLAN_FLAGS

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
PAIRS = {
    build.Builder: trt.Builder,
    build.Config: trt.IBuilderConfig,
    build.Network: trt.INetworkDefinition,
    build.Parser: trt.OnnxParser,
    build.Profile: trt.IOptimizationProfile,
    build.Registry: trt.IPluginRegistry,
    build.ILogger: trt.ILogger,
    build.TimingCache: trt.ITimingCache,
    build.Runtime: trt.Runtime,
    build.CudaEngine: trt.ICudaEngine,
    build.EngineInspector: trt.EngineInspector,
    runtime.ILogger: trt.ILogger,
    runtime.CudaEngine: trt.ICudaEngine,
    runtime.ExecutionContext: trt.IExecutionContext,
}
OWN = {"fill", "build"}  # the stand-ins' own
METHODS = [
    pytest.param(standin, real, name, id=f"{real.__name__}.{name}")
    for standin, real in PAIRS.items()
    for name, method in vars(standin).items()
    if inspect.isfunction(method) and not name.startswith("_") and name not in OWN
]


def overloads(method: Any) -> list[list[str]]:
    """The parameters of each overload, as the binding's own docstring names them."""
    found = re.findall(rf"{method.__name__}\((self: .*)\) -> ", method.__doc__)
    return [re.findall(r"(?:^|, )(\w+): ", parameters) for parameters in found]


@pytest.mark.parametrize(("standin", "real", "name"), METHODS)
def test_a_method_has_the_parameters_of_the_real_one(standin: Any, real: Any, name: str) -> None:
    ours = list(inspect.signature(getattr(standin, name)).parameters)
    assert ours in overloads(getattr(real, name))


def test_what_only_tensorrt_rtx_has_is_where_the_choice_looks_for_it() -> None:
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert isinstance(trt.IRuntimeConfig.cuda_graph_strategy, property)
    for name in runtime.ExecutionContextAllocationStrategy.__members__:
        assert name in trt.ExecutionContextAllocationStrategy.__members__


def test_every_flag_that_a_plan_can_be_built_with_is_a_builder_flag_of_tensorrt() -> None:
    assert {flag.upper() for flag in PLAN_FLAGS} <= set(trt.BuilderFlag.__members__)
    assert {flag.upper() for flag in PLAN_FLAGS} == set(build.BuilderFlag.__members__)
    for name in ("streamable_weights_size", "weight_streaming_budget_v2"):
        assert isinstance(getattr(trt.ICudaEngine, name), property)
    assert trt.ProfilingVerbosity.DETAILED
    assert trt.LayerInformationFormat.JSON

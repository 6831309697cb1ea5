"""A plan opened on a GPU: what executes one step over tensors that stay where they are."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from legokv.compile.backends import PLAN_BACKENDS
from legokv.errors import EngineMismatch
from legokv.plan_facts import PlanFacts

Tensors = Mapping[str, Tensor]


class StepFailed(RuntimeError):
    """The runtime refused a step; the engine reports it to that step's requests."""


class PlanSession(Protocol):
    """Runs steps one after another on one stream."""

    def run(self, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        """Execute under profile number `profile`; done, or StepFailed, when it returns.

        A name's tensor always begins at the same address; its shape is the step's.
        """


def open_plan(folder: Path, plan: PlanFacts) -> PlanSession:
    """The engine folder's plan, in the runtime of its flavour; EngineMismatch if that refuses."""
    trt = importlib.import_module(PLAN_BACKENDS[plan.flavour].modules[-1])
    if trt.get_plugin_registry().load_library(str(folder / plan.library_file)) is None:
        raise EngineMismatch(f"{plan.flavour} could not load the plugins of {plan.library_file}")
    content = (folder / plan.plan_file).read_bytes()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    if plan.flavour == "tensorrt-llm":
        return LLMSession(importlib.import_module("tensorrt_llm.runtime"), content, stream)
    return TensorRTSession(trt, content, stream, len(plan.profiles))


class TensorRTSession:
    """TensorRT or TensorRT-RTX: a context for each profile; RTX makes CUDA graphs of decode steps.

    TensorRT leaves capturing to its caller, which is not done: nothing of it could be tried here.
    """

    def __init__(self, trt: Any, content: bytes, stream: Any, num_profiles: int) -> None:
        self._stream = stream
        # Kept: an engine must not outlive its runtime, nor a runtime its logger.
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineMismatch("TensorRT could not open the plan; its reasons are printed above")
        last = num_profiles - 1
        self._contexts = [self._context(trt, n, decodes=n == last) for n in range(num_profiles)]

    def _context(self, trt: Any, profile: int, *, decodes: bool) -> Any:
        if decodes and hasattr(trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if not context.set_optimization_profile_async(profile, self._stream.cuda_stream):
            raise EngineMismatch(f"the plan has no optimisation profile number {profile}")
        return context

    def run(self, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        context = self._contexts[profile]
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise StepFailed(f"TensorRT refused the shape {tuple(tensor.shape)} of {name}")
        for name, tensor in (*inputs.items(), *outputs.items()):
            context.set_tensor_address(name, tensor.data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream())
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise StepFailed("TensorRT refused to execute a step")
        self._stream.synchronize()


class LLMSession:
    """TensorRT-LLM's own Session, which has one context, under the first profile."""

    def __init__(self, runtime: Any, content: bytes, stream: Any) -> None:
        self._session = runtime.Session.from_serialized_engine(content)
        self._stream = stream

    def run(self, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        self._session.set_shapes(dict(inputs))
        self._stream.wait_stream(torch.cuda.current_stream())
        if not self._session.run(dict(inputs), dict(outputs), self._stream.cuda_stream):
            raise StepFailed("TensorRT-LLM refused to execute a step")
        self._stream.synchronize()

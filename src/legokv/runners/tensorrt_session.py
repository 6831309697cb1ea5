"""A plan opened by TensorRT or TensorRT-RTX on a GPU: a context for each kind of step."""

from typing import Any

import torch

from legokv.built.plan_limits import DECODE, PREFILL
from legokv.errors import EngineMismatch
from legokv.runners.decode_graphs import DecodeGraphs
from legokv.runners.plan.contexts import ContextSteps, context_of
from legokv.runners.plan.session import Tensors


class TensorRTSession:
    """Prefill and link steps in one context; decode steps as CUDA graphs.

    TensorRT-RTX captures them itself when its context is asked to; TensorRT leaves it to us.
    """

    def __init__(self, trt: Any, content: bytes, stream: Any) -> None:
        self._stream = stream
        # Kept: an engine must not outlive its runtime, nor a runtime its logger.
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineMismatch("TensorRT could not open the plan; its reasons are printed above")
        static = trt.ExecutionContextAllocationStrategy.STATIC
        self._prefill = ContextSteps(context_of(self._engine, static, PREFILL, stream), stream)
        self._decode = self._decode_steps(trt)

    def _decode_steps(self, trt: Any) -> ContextSteps | DecodeGraphs:
        if not hasattr(trt, "CudaGraphStrategy"):
            return decode_graphs(trt, self._engine, self._stream)
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return ContextSteps(context_of(self._engine, config, DECODE, self._stream), self._stream)

    def run(self, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        steps = self._decode if profile == DECODE else self._prefill
        self._stream.wait_stream(torch.cuda.current_stream())
        steps.run(inputs, outputs)
        self._stream.synchronize()


def decode_graphs(trt: Any, engine: Any, stream: Any) -> DecodeGraphs:
    """The decode steps of an opened engine, each context with memory for that profile only."""
    strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    return DecodeGraphs(lambda: context_of(engine, strategy, DECODE, stream), stream)

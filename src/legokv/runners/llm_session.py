"""A plan opened by TensorRT-LLM 1.2's own Session, which has one context, under the first profile.

Decode steps have the plan's second profile, in contexts made from the session's engine.
"""

from typing import Any

import torch

from legokv.built.plan_limits import DECODE
from legokv.runners.plan.session import StepFailed, Tensors, addresses
from legokv.runners.tensorrt_session import decode_graphs


class LLMSession:
    """`runtime` is `tensorrt_llm.runtime`, `trt` the `tensorrt` that it is built on."""

    def __init__(self, runtime: Any, trt: Any, content: bytes, stream: Any) -> None:
        self._session = runtime.Session.from_serialized_engine(content)
        self._stream = stream
        self._decode = decode_graphs(trt, self._session.engine, stream)

    def run(self, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        if profile == DECODE:
            self._decode.run(inputs, outputs)
        else:
            self._run_session(inputs, outputs)
        self._stream.synchronize()

    def _run_session(self, inputs: Tensors, outputs: Tensors) -> None:
        try:
            self._session.set_shapes(dict(inputs))
        except ValueError as error:
            raise StepFailed(f"TensorRT-LLM refused a shape: {error}") from error
        stream = self._stream.cuda_stream
        if not self._session.run(addresses(inputs), addresses(outputs), stream):
            raise StepFailed("TensorRT-LLM refused to execute a step")

"""Stands in for what runs a plan on a GPU: TensorRT's runtime and torch's CUDA graphs.

Each call is noted in `calls`, in order. The parameters are called as TensorRT's own are:
`tests/contract/test_standin_signatures.py` compares them with TensorRT-RTX's.
"""

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

STREAM = 77


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1


class CudaGraphStrategy(IntEnum):
    WHOLE_GRAPH_CAPTURE = 1


class RuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy: CudaGraphStrategy | None = None


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.is_made = True

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class Device:
    """What all of these share: the calls, the contexts made, and what is to be refused."""

    def __init__(self, *, opens: bool = True, refuses: str = "") -> None:
        self.opens, self.refuses = opens, refuses
        self.streamable_bytes = 0
        self.calls: list[str] = []
        self.contexts: list[ExecutionContext] = []
        self.capturing = False
        self.captured: list[ExecutionContext] = []

    def note(self, call: str) -> bool:
        """Note it; whether it is accepted."""
        self.calls.append(call)
        return not self.refuses or self.refuses not in call


class ExecutionContext:
    def __init__(self, device: Device, how: object) -> None:
        self._device, self._number = device, len(device.contexts)
        self.how = how
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.told: list[str] = []

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        return self._device.note(f"{self._number}: profile {profile_index}")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self._device.capturing
        self.shapes[name] = tuple(shape)
        self.told.append(name)
        return self._device.refuses != "shape"

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self._device.capturing
        assert memory, f"{name} has no address"
        self.addresses[name] = memory
        self.told.append(name)
        return self._device.refuses != "address"

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        if self._device.capturing:
            self._device.captured.append(self)
            return self._device.note(f"{self._number}: record")
        return self._device.note(f"{self._number}: execute")


class CudaEngine:
    def __init__(self, device: Device) -> None:
        self._device = device
        self.streamable_weights_size = device.streamable_bytes

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.streamable_weights_size // 2

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight_streaming_budget_v2":
            self._device.note(f"{value} bytes of weights stay")
        super().__setattr__(name, value)

    def create_execution_context(
        self, strategy: object = ExecutionContextAllocationStrategy.STATIC
    ) -> ExecutionContext | None:
        words = getattr(strategy, "name", None) or strategy.cuda_graph_strategy.name  # type: ignore[attr-defined]
        context = ExecutionContext(self._device, strategy)
        if not self._device.note(f"{len(self._device.contexts)}: created {words}"):
            return None
        self._device.contexts.append(context)
        return context

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()


def tensorrt_module(device: Device, *, rtx: bool) -> Any:
    """The module `tensorrt`; `rtx` adds what only TensorRT-RTX has."""
    engine = CudaEngine(device) if device.opens else None

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)
            assert logger.is_made
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
            assert serialized_engine == b"plan"
            if engine is None:
                self.logger.log(ILogger.WARNING, "a warning")
                self.logger.log(ILogger.ERROR, "this GPU is\nnot supported")
            return engine

    module = SimpleNamespace(
        ILogger=ILogger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
    )
    if rtx:
        module.CudaGraphStrategy = CudaGraphStrategy
    return module


class Session:
    """`tensorrt_llm.runtime.Session`, which opens the engine and makes its first context."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.engine = CudaEngine(device)
        context = self.engine.create_execution_context()
        assert context is not None
        self.context = context
        self.context.set_optimization_profile_async(0, STREAM)

    def set_shapes(self, tensor_dict: dict[str, Tensor], context: object = None) -> None:
        assert context is None
        for name, tensor in tensor_dict.items():
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise ValueError(f"Couldn't assign {name} with shape {tensor.shape}")

    def run(
        self, inputs: dict[str, Any], outputs: dict[str, Any], stream: int, context: object = None
    ) -> bool:
        assert context is None
        for name, address in (*inputs.items(), *outputs.items()):
            self.context.set_tensor_address(name, address)
        return self.context.execute_async_v3(stream)


def llm_runtime(device: Device) -> Any:
    """The module `tensorrt_llm.runtime`."""

    def from_serialized_engine(engine: bytes) -> Session:
        assert engine == b"plan"
        return Session(device)

    return SimpleNamespace(Session=SimpleNamespace(from_serialized_engine=from_serialized_engine))


class Graph:
    """`torch.cuda.CUDAGraph`, which holds what was executed while it was captured."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.contexts: list[ExecutionContext] = []

    def replay(self) -> None:
        assert self._device.calls[-1] == "on the stream"
        self._device.note(f"replay of {[c._number for c in self.contexts]}")


class Capture:
    """`torch.cuda.graph`."""

    def __init__(self, device: Device, graph: Graph, stream: object, mode: str) -> None:
        assert mode == "thread_local"
        self._device, self._graph = device, graph

    def __enter__(self) -> None:
        self._device.note("capture")
        self._device.capturing, self._device.captured = True, []

    def __exit__(self, *failed: object) -> None:
        self._device.capturing = False
        self._graph.contexts = self._device.captured


def cuda_stream(device: Device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stream, with torch.cuda's graphs and current stream in its place on this machine."""
    stream = SimpleNamespace(
        cuda_stream=STREAM,
        wait_stream=lambda other: device.note("wait"),
        synchronize=lambda: device.note("synchronize"),
    )

    class OnStream:
        def __init__(self, given: object) -> None:
            assert given is stream

        def __enter__(self) -> None:
            device.note("on the stream")

        def __exit__(self, *failed: object) -> None:
            pass

    def capture(cuda_graph: Graph, *, stream: object, capture_error_mode: str) -> Capture:
        return Capture(device, cuda_graph, stream, capture_error_mode)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(device))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", OnStream)
    return stream

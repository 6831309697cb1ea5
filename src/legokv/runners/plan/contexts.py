"""Steps of an opened plan, over tensors that stay where they are: TensorRT's execution contexts."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from legokv.errors import EngineMismatch, StepFailed

Tensors = Mapping[str, Tensor]


class PlanSession(Protocol):
    """Runs steps one after another on one stream."""

    def run(self, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        """Execute under profile number `profile`; done, or StepFailed, when it returns.

        A name's tensor always begins at the same address; its shape is the step's.
        """


def address_of(tensor: Tensor) -> int:
    """Where a tensor begins. An empty view has an address too: TensorRT takes no null for one."""
    skipped = int(tensor.storage_offset()) * tensor.element_size()
    return tensor.untyped_storage().data_ptr() + skipped


def addresses(tensors: Tensors) -> dict[str, int]:
    """Where each of them begins."""
    return {name: address_of(tensor) for name, tensor in tensors.items()}


def context_of(engine: Any, how: Any, profile: int, stream: Any) -> Any:
    """A context for steps of one profile; `how` is its allocation strategy or runtime config.

    EngineMismatch if TensorRT makes none.
    """
    context = engine.create_execution_context(how)
    if context is None:
        raise EngineMismatch(
            "TensorRT made no execution context; its reasons are in the log; where it is memory, "
            "a smaller pool_tokens leaves it more"
        )
    if not context.set_optimization_profile_async(profile, stream.cuda_stream):
        raise EngineMismatch(f"the plan has no optimisation profile number {profile}")
    return context


class Bindings:
    """What a context has been told of its tensors: a step tells it what is new, and no more.

    The pools' shapes and all addresses are the same in every step, so they are told once.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def bind(self, inputs: Tensors, outputs: Tensors) -> None:
        """Give the context a step's shapes and addresses; StepFailed, naming what it refuses."""
        for name, tensor in inputs.items():
            shape = tuple(tensor.shape)
            if self._shapes.get(name) == shape:
                continue
            if not self._context.set_input_shape(name, shape):
                raise StepFailed(f"TensorRT refused the shape {shape} of {name}")
            self._shapes[name] = shape
        for name, address in (*addresses(inputs).items(), *addresses(outputs).items()):
            if self._addresses.get(name) == address:
                continue
            if not self._context.set_tensor_address(name, address):
                raise StepFailed(f"TensorRT refused the address of {name}")
            self._addresses[name] = address


def execute(context: Any, stream: Any) -> None:
    """Put the bound step on the stream; StepFailed if TensorRT refuses."""
    if not context.execute_async_v3(stream.cuda_stream):
        raise StepFailed("TensorRT refused to execute a step")


class ContextSteps:
    """Steps one after another in one context."""

    def __init__(self, context: Any, stream: Any) -> None:
        self._context, self._stream = context, stream
        self._bindings = Bindings(context)

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """Put one step on the stream."""
        self._bindings.bind(inputs, outputs)
        execute(self._context, self._stream)


# Each keeps a context with its step's working memory.
MAX_GRAPHS = 16
# Steps until a capture is tried again after one failed; twice as many after each more.
RETRY_STEPS, MAX_RETRY_STEPS = 64, 65536

Shapes = tuple[tuple[int, ...], ...]

log = logging.getLogger(__name__)


class StepGraphs:
    """Runs steps of one profile on `stream`; a shape that comes twice in a row is captured.

    Tensors of a name always begin at one address, as a `PlanSession` is promised. Of more than
    MAX_GRAPHS shapes the one unused for longest is captured anew when it is next wanted. A capture
    that fails, for want of memory say, is logged, and none is tried in the next steps.
    """

    def __init__(self, make_context: Callable[[], Any], stream: Any) -> None:
        self._make_context, self._stream = make_context, stream
        self._plain = ContextSteps(make_context(), stream)
        self._graphs: OrderedDict[Shapes, tuple[Any, Any]] = OrderedDict()
        self._last: Shapes | None = None
        self._steps = self._retry_at = 0
        self._pause = RETRY_STEPS

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """Put one step on the stream."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs.values())
        self._steps += 1
        if shapes in self._graphs:
            self._replay(shapes)
        elif shapes == self._last and self._steps >= self._retry_at:
            self._capture(shapes, inputs, outputs)
        else:
            self._plain.run(inputs, outputs)
        self._last = shapes

    def _replay(self, shapes: Shapes) -> None:
        self._graphs.move_to_end(shapes)
        graph, _ = self._graphs[shapes]
        with torch.cuda.stream(self._stream):
            graph.replay()

    def _capture(self, shapes: Shapes, inputs: Tensors, outputs: Tensors) -> None:
        """Run the step in a context of its own, which settles its shapes, then record the next."""
        try:
            context = self._make_context()
        except (RuntimeError, EngineMismatch) as error:
            self._pause_captures(error)
            self._plain.run(inputs, outputs)
            return
        Bindings(context).bind(inputs, outputs)
        execute(context, self._stream)
        self._stream.synchronize()
        try:
            self._graphs[shapes] = self._recorded(context), context
        except (RuntimeError, StepFailed) as error:
            # What torch raises, and what `execute` does. The step itself is done.
            self._pause_captures(error)
        else:
            self._pause = RETRY_STEPS
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def _pause_captures(self, error: Exception) -> None:
        self._retry_at = self._steps + self._pause
        log.warning(
            "a step was not captured as a CUDA graph, and none is for %d steps: %s",
            self._pause,
            error,
        )
        self._pause = min(2 * self._pause, MAX_RETRY_STEPS)

    def _recorded(self, context: Any) -> Any:
        graph = torch.cuda.CUDAGraph()
        # Another thread may well allocate meanwhile: only this one's calls matter.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            execute(context, self._stream)
        return graph

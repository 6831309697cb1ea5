"""Steps in one execution context of TensorRT's, made for one profile."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from legokv.errors import EngineMismatch, StepFailed
from legokv.runners.plan.session import Tensors, addresses


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


def bind(context: Any, inputs: Tensors, outputs: Tensors) -> None:
    """Give the context a step's shapes and addresses; StepFailed, naming the tensor it refuses."""
    for name, tensor in inputs.items():
        if not context.set_input_shape(name, tuple(tensor.shape)):
            raise StepFailed(f"TensorRT refused the shape {tuple(tensor.shape)} of {name}")
    for name, address in (*addresses(inputs).items(), *addresses(outputs).items()):
        if not context.set_tensor_address(name, address):
            raise StepFailed(f"TensorRT refused the address of {name}")


def execute(context: Any, stream: Any) -> None:
    """Put the bound step on the stream; StepFailed if TensorRT refuses."""
    if not context.execute_async_v3(stream.cuda_stream):
        raise StepFailed("TensorRT refused to execute a step")


class ContextSteps:
    """Steps one after another in one context."""

    def __init__(self, context: Any, stream: Any) -> None:
        self._context, self._stream = context, stream

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """Put one step on the stream."""
        bind(self._context, inputs, outputs)
        execute(self._context, self._stream)


# Each keeps a context with a decode step's working memory.
MAX_GRAPHS = 16
# Decode steps until a capture is tried again after one failed; twice as many after each more.
RETRY_STEPS, MAX_RETRY_STEPS = 64, 65536

Shapes = tuple[tuple[int, ...], ...]

log = logging.getLogger(__name__)


class DecodeGraphs:
    """Runs decode steps on `stream`: a shape that comes twice in a row is captured, then replayed.

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
        context = self._make_context()
        bind(context, inputs, outputs)
        execute(context, self._stream)
        self._stream.synchronize()
        try:
            self._graphs[shapes] = self._recorded(context), context
        except (RuntimeError, StepFailed) as error:
            # What torch raises, and what `execute` does. The step itself is done.
            self._retry_at = self._steps + self._pause
            log.warning(
                "a decode step was not captured as a CUDA graph, and none is for %d steps: %s",
                self._pause,
                error,
            )
            self._pause = min(2 * self._pause, MAX_RETRY_STEPS)
        else:
            self._pause = RETRY_STEPS
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def _recorded(self, context: Any) -> Any:
        graph = torch.cuda.CUDAGraph()
        # Another thread may well allocate meanwhile: only this one's calls matter.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            execute(context, self._stream)
        return graph

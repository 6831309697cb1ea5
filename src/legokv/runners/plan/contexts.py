"""Steps in one execution context of TensorRT's, made for one profile."""

from typing import Any

from legokv.errors import EngineMismatch
from legokv.runners.plan.session import StepFailed, Tensors, addresses


def context_of(engine: Any, how: Any, profile: int, stream: Any) -> Any:
    """A context for steps of one profile; `how` is its allocation strategy or runtime config.

    EngineMismatch if TensorRT makes none.
    """
    context = engine.create_execution_context(how)
    if context is None:
        raise EngineMismatch(
            "TensorRT made no execution context; its reasons are printed above, and where it is "
            "memory a smaller pool_tokens leaves it more"
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

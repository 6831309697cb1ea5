"""What executes one step of an opened plan, over tensors that stay where they are."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

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

"""The inputs of a step at fixed addresses: set aside once, for the largest step a plan holds."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from legokv.built.plan_limits import Profile
from legokv.step.batch import Int32
from legokv.step.graph import STEP_INPUTS, Binding


class StepBuffers:
    """Each step input twice: on the host (pinned, for a GPU) to write, on the device to read."""

    def __init__(self, profiles: Sequence[Profile], device: torch.device) -> None:
        sizes = {binding.name: largest(binding, profiles) for binding in STEP_INPUTS}
        pinned = device.type == "cuda"
        self._host = {
            name: torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
            for name, size in sizes.items()
        }
        self._device = {
            name: torch.zeros(size, dtype=torch.int32, device=device)
            for name, size in sizes.items()
        }

    def load(self, arrays: Mapping[str, Int32], sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """Bring a step's arrays to the device: views of the buffers, shaped for `sizes`.

        Where `sizes` has more page rows than the arrays, the rest are rows without a page. The
        last step must have been waited for.
        """
        return {binding.name: self._load(binding, arrays, sizes) for binding in STEP_INPUTS}

    def _load(
        self, binding: Binding, arrays: Mapping[str, Int32], sizes: Mapping[str, int]
    ) -> Tensor:
        array, shape = torch.from_numpy(arrays[binding.name]), binding.sized(sizes)
        host, device = (
            view_of(buffers[binding.name], shape) for buffers in (self._host, self._device)
        )
        if array.shape != host.shape:
            host.zero_()
        host[tuple(slice(0, size) for size in array.shape)].copy_(array)
        device.copy_(host, non_blocking=True)
        return device


def largest(binding: Binding, profiles: Sequence[Profile]) -> int:
    """Elements of the binding's largest shape under any of the profiles."""
    return max(math.prod(profile.shapes(binding)[2]) for profile in profiles)


def view_of(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """The first elements of a flat buffer, as `shape`."""
    return buffer[: math.prod(shape)].view(tuple(shape))

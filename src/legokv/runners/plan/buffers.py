"""The inputs of a step at fixed addresses: set aside once, for the largest step a plan holds."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from legokv.built.plan_limits import Profile
from legokv.model.dtypes import Int32
from legokv.ops.kv_import import kv_import_in_place
from legokv.runners.page_store import PageStore, page_blocks
from legokv.step.graph import STEP_INPUTS, Binding, GraphShape


class ArrivingPages:
    """Up to `max_pages` pages that wait for a step, in buffers at fixed addresses."""

    def __init__(self, graph: GraphShape, store: PageStore, max_pages: int) -> None:
        device = store.device
        self.num_pages = 0
        self._max_pages, self._store = max_pages, store
        self._names = [binding.name for binding in graph.arriving]
        self._numbers = torch.zeros(max_pages, dtype=torch.int32, device=device)
        # Not one tensor: each layer's block is a binding of its own.
        self._blocks = [
            torch.zeros((max_pages, *graph.page), dtype=store.dtype, device=device)
            for _ in range(graph.num_layers)
        ]
        self._waiting: set[int] = set()

    def add(self, pages: Sequence[int], kv: Tensor) -> None:
        """Let stored kv [L, 2, n, G, D] wait; what there is no room for goes into the pools now."""
        if self._waiting.intersection(pages):
            # A page given away and filled again: the later content must win.
            self.put_in_pools()
        if self.num_pages + len(pages) > self._max_pages:
            self.put_in_pools()
            self._store.import_pages(pages, kv)
            return
        place = slice(self.num_pages, self.num_pages + len(pages))
        self._numbers[place] = torch.tensor(pages, dtype=torch.int32)
        blocks = page_blocks(kv, len(pages), self._store.page_size)
        for waiting, block in zip(self._blocks, blocks, strict=True):
            waiting[place] = block.to(waiting.device)
        self._waiting.update(pages)
        self.num_pages = place.stop

    def inputs(self) -> dict[str, Tensor]:
        """The graph's import inputs; `taken` says that a step had them."""
        if not self._names:
            return {}
        tensors = (self._numbers, *self._blocks)
        waiting = slice(0, self.num_pages)
        return {name: held[waiting] for name, held in zip(self._names, tensors, strict=True)}

    def taken(self) -> None:
        """Nothing waits any more."""
        self._waiting.clear()
        self.num_pages = 0

    def put_in_pools(self) -> None:
        """Import what waits without a step, before pages are copied or read."""
        if self.num_pages:
            waiting = slice(0, self.num_pages)
            for pool, block in zip(self._store.pools, self._blocks, strict=True):
                kv_import_in_place(pool, block[waiting], self._numbers[waiting])
        self.taken()


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

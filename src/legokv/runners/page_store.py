"""The pools of all layers as torch tensors on one device, and what moves whole pages in them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from legokv.model.dtypes import Int32
from legokv.ops.kv_import import copy_pages, import_stored
from legokv.step.batch import StepBatch
from legokv.step.graph import GraphShape

log = logging.getLogger(__name__)

Import = Callable[[Tensor, Tensor, Tensor], None]
"""Puts stored kv [L, 2, n, G, D] over pages int32 [M] of pools [L, N, 2, S, G, D], all on one
device; the last page's slots past n become zeros."""

Copy = Callable[[Tensor, Tensor, Tensor], None]
"""Copies pages int32 [M] to others in pools [L, N, 2, S, G, D], no target being a source."""


class ImportStream:
    """Imports on `stream`, beside the work on the device's own stream that has other pages.

    An import waits for the work put there before it that may touch one of its pages, and work waits
    for the imports before it that filled one of its own. Neither waits for anything else. Nothing
    but imports is put on `stream`.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # The event of its end, its pages: imports that no work has waited for; work under way.
        self._imports: list[tuple[Any, Int32]] = []
        self._works: list[tuple[Any, Int32]] = []

    def follow(self) -> None:
        """Put all imports behind what is on torch's current stream now."""
        self._stream.wait_stream(torch.cuda.current_stream())

    @contextmanager
    def importing(self, pages: Sequence[int]) -> Iterator[None]:
        """What is put on torch's current stream within fills `pages`."""
        mine = np.array(pages, np.int32)
        # The last one is behind all others on its stream.
        for end, theirs in reversed(self._works):
            if np.isin(theirs, mine).any():
                self._stream.wait_event(end)
                break
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._imports.append((self._stream.record_event(), mine))

    @contextmanager
    def working(self, pages: Int32) -> Iterator[None]:
        """What is put on torch's current stream within touches `pages`, an array of its own."""
        own = torch.cuda.current_stream()
        self._works, self._imports = (_under_way(each) for each in (self._works, self._imports))
        for number in reversed(range(len(self._imports))):
            end, theirs = self._imports[number]
            if np.isin(pages, theirs).any():
                own.wait_event(end)
                del self._imports[: number + 1]
                break
        try:
            yield
        finally:
            self._works.append((own.record_event(), pages))


def _under_way(works: list[tuple[Any, Int32]]) -> list[tuple[Any, Int32]]:
    return [(end, pages) for end, pages in works if not end.query()]


def import_stream(device: torch.device) -> ImportStream | None:
    """One of a GPU; None for a CPU, which has no streams."""
    if device.type != "cuda":
        return None
    return ImportStream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


class PageStore:
    """One pool [N, 2, S, G, D] for each layer, zeros at first, at one address for ever.

    With `beside` imports go on that stream, and whoever computes does it within `step`.
    """

    def __init__(
        self,
        graph: GraphShape,
        num_pages: int,
        device: torch.device,
        import_kv: Import = import_stored,
        copy: Copy = copy_pages,
        beside: ImportStream | None = None,
    ) -> None:
        self.dtype: torch.dtype = getattr(torch, graph.dtypes.kv)
        self.num_pages, self.page_size = num_pages, graph.page_size
        self.device = device
        self._import, self._copy, self._beside = import_kv, copy, beside
        self._pins = device.type == "cuda"
        # One tensor, so that one launch imports into all of them.
        self._all = torch.zeros(
            (graph.num_layers, num_pages, *graph.page), dtype=self.dtype, device=device
        )
        self.pools = list(self._all.unbind())
        if beside:
            beside.follow()

    def step(self, batch: StepBatch) -> AbstractContextManager[None]:
        """Around what puts a step that computes `batch` on the device's own stream."""
        if not self._beside:
            return nullcontext()
        rows = batch.pages[batch.pages[:, :, 3] > 0][:, 0]
        moved = (drift.pages[:, :2].ravel() for drift in batch.drifts)
        # Copied now: the next step's tables are written over these while this one still runs.
        pages = np.concatenate([rows, batch.slots // self.page_size, *moved])
        return self._beside.working(pages)

    @torch.inference_mode()
    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As the runner's."""
        if sources:
            with self._working([*sources, *targets]):
                self._copy(self._all, self._numbers(sources), self._numbers(targets))

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        """As the runner's."""
        with self._beside.importing(pages) if self._beside else nullcontext():
            numbers = torch.tensor(pages, dtype=torch.int32, device=self.device)
            kv = kv.to(self.device, non_blocking=True).contiguous()
            self._import(self._all, kv, numbers)

    @torch.inference_mode()
    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        """As the runner's."""
        numbers = self._numbers(pages)
        with self._working(pages):
            layers = [
                pool.index_select(0, numbers).transpose(0, 1).flatten(1, 2) for pool in self.pools
            ]
            kv = torch.stack(layers)[:, :, :num_tokens].contiguous()
            return self._on_host(kv)

    def _working(self, pages: Sequence[int]) -> AbstractContextManager[None]:
        numbers = np.array(pages, np.int32)
        return self._beside.working(numbers) if self._beside else nullcontext()

    def _on_host(self, kv: Tensor) -> Tensor:
        """Pinned, so that where it is kept it can come back at the bus's speed, if that can be."""
        if not self._pins:
            return kv.cpu()
        try:
            stored = torch.empty(kv.shape, dtype=kv.dtype, pin_memory=True)
        except RuntimeError as error:
            self._pins = False
            log.warning(
                "no %d bytes of memory can be pinned here (%s): from now on chunks leave the GPU "
                "into ordinary memory, and come back more slowly",
                kv.nbytes,
                str(error).partition("\n")[0],
            )
            return kv.cpu()
        return stored.copy_(kv)

    def _numbers(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(pages, dtype=torch.int32, device=self.device)


def page_blocks(kv: Tensor, num_pages: int, page_size: int) -> Tensor:
    """Stored kv [L, 2, n, G, D] as blocks of pages [L, M, 2, S, G, D]; slots past n are zeros."""
    num_layers, _, num_tokens, *heads = kv.shape
    padding = num_pages * page_size - num_tokens
    padded = torch.nn.functional.pad(kv, (0, 0, 0, 0, 0, padding))
    return padded.view(num_layers, 2, num_pages, page_size, *heads).transpose(1, 2).contiguous()

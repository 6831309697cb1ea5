"""The pools of all layers as torch tensors on one device, and what moves whole pages in them."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from legokv.ops.kv_import import copy_pages, import_stored
from legokv.step.graph import GraphShape

log = logging.getLogger(__name__)

Import = Callable[[Tensor, Tensor, Tensor], None]
"""Puts stored kv [L, 2, n, G, D] over pages int32 [M] of pools [L, N, 2, S, G, D], all on one
device; the last page's slots past n become zeros."""

Copy = Callable[[Tensor, Tensor, Tensor], None]
"""Copies pages int32 [M] to others in pools [L, N, 2, S, G, D], no target being a source."""


class PageStore:
    """One pool [N, 2, S, G, D] for each layer, zeros at first, at one address for ever."""

    def __init__(
        self,
        graph: GraphShape,
        num_pages: int,
        device: torch.device,
        import_kv: Import = import_stored,
        copy: Copy = copy_pages,
    ) -> None:
        self.dtype: torch.dtype = getattr(torch, graph.dtypes.kv)
        self.num_pages, self.page_size = num_pages, graph.page_size
        self.device = device
        self._import, self._copy = import_kv, copy
        self._pins = device.type == "cuda"
        # One tensor, so that one launch imports into all of them.
        self._all = torch.zeros(
            (graph.num_layers, num_pages, *graph.page), dtype=self.dtype, device=device
        )
        self.pools = list(self._all.unbind())

    @torch.inference_mode()
    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As the runner's."""
        if sources:
            self._copy(self._all, self._numbers(sources), self._numbers(targets))

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        """As the runner's."""
        numbers = self._numbers(pages)
        kv = kv.to(self.device, non_blocking=True).contiguous()
        self._import(self._all, kv, numbers)

    @torch.inference_mode()
    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        """As the runner's."""
        numbers = self._numbers(pages)
        layers = [
            pool.index_select(0, numbers).transpose(0, 1).flatten(1, 2) for pool in self.pools
        ]
        kv = torch.stack(layers)[:, :, :num_tokens].contiguous()
        return self._on_host(kv)

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

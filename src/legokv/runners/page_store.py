"""The pools of all layers as torch tensors on one device, and what moves whole pages in them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from legokv.ops.kv_import import kv_import_in_place
from legokv.step.graph import GraphShape


class PageStore:
    """One pool [N, 2, S, G, D] for each layer, zeros at first, at one address for ever."""

    def __init__(self, graph: GraphShape, num_pages: int, device: torch.device) -> None:
        self.dtype: torch.dtype = getattr(torch, graph.dtypes.kv)
        self.page_size = graph.page_size
        self.device = device
        self.pools = [
            torch.zeros((num_pages, *graph.page), dtype=self.dtype, device=device)
            for _ in range(graph.num_layers)
        ]

    @torch.inference_mode()
    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As the runner's."""
        read, written = self._numbers(sources), self._numbers(targets)
        for pool in self.pools:
            pool[written] = pool[read]

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        """As the runner's."""
        numbers = self._numbers(pages)
        blocks = page_blocks(kv, len(pages), self.page_size).to(self.device)
        for pool, block in zip(self.pools, blocks, strict=True):
            kv_import_in_place(pool, block, numbers)

    @torch.inference_mode()
    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        """As the runner's."""
        numbers = self._numbers(pages)
        layers = [
            pool.index_select(0, numbers).transpose(0, 1).flatten(1, 2) for pool in self.pools
        ]
        return torch.stack(layers)[:, :, :num_tokens].contiguous().cpu()

    def _numbers(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(pages, dtype=torch.int64, device=self.device)


def page_blocks(kv: Tensor, num_pages: int, page_size: int) -> Tensor:
    """Stored kv [L, 2, n, G, D] as blocks of pages [L, M, 2, S, G, D]; slots past n are zeros."""
    num_layers, _, num_tokens, *heads = kv.shape
    padding = num_pages * page_size - num_tokens
    padded = torch.nn.functional.pad(kv, (0, 0, 0, 0, 0, padding))
    return padded.view(num_layers, 2, num_pages, page_size, *heads).transpose(1, 2).contiguous()

"""Runs the model with torch on a device, its attention and imports by the plugins' own kernels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from legokv.kernels.gpu import AttentionTables, Launchers, attention_arguments
from legokv.model.config import ModelConfig
from legokv.model.decoder import Attention, decoder_from_weights
from legokv.runners.attention_forms import attention_tables, rotation_of
from legokv.runners.page_store import PageStore, page_blocks
from legokv.step.batch import StepBatch
from legokv.step.graph import graph_shape


class KernelRunner:
    """A runner over `weights` moved to the device: a CUDA one, or the CPU for the host form.

    LaunchRefused at the first step if the library has no kernel for the model's sizes.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        launchers: Launchers,
        device: torch.device,
        *,
        num_pages: int,
        page_size: int,
    ) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._launchers, self.device = launchers, device
        on_device = {name: weight.to(device) for name, weight in weights.items()}
        self._decoder = decoder_from_weights(config, on_device)
        dtype = str(self._decoder.embed.weight.dtype).removeprefix("torch.")
        self._store = PageStore(graph_shape(config, dtype, page_size), num_pages, device)
        self._rotation = rotation_of(config, device)
        self._workspace = torch.empty(0, dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        ids, rows = self._on_device(batch.input_ids), self._on_device(batch.logit_rows)
        attention = self._attention(attention_tables(batch, self._rotation))
        logits: Tensor = self._decoder(ids, rows, self._store.pools, attention)[0]
        return logits.cpu()

    def _attention(self, tables: AttentionTables) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
            q, k, v = (given.contiguous() for given in (q, k, v))
            arguments = attention_arguments(q, k, v, pool, tables)
            out = torch.empty_like(q)
            workspace = self._workspace_of(self._launchers.workspace_bytes(arguments))
            self._launchers.legolink_attention(arguments, out, workspace, self._stream())
            return out, pool

        return attend

    def _workspace_of(self, num_bytes: int) -> Tensor:
        """One workspace for all layers: they follow each other on one stream."""
        if num_bytes > self._workspace.numel():
            self._workspace = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        return self._workspace

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._store.copy_pages(sources, targets)

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        numbers = self._on_device(np.asarray(pages, np.int32))
        blocks = page_blocks(kv, len(pages), self.page_size).to(self.device)
        for pool, block in zip(self._store.pools, blocks, strict=True):
            self._launchers.kv_import(pool, block, numbers, self._stream())

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        return self._store.export_pages(pages, num_tokens)

    def _stream(self) -> int:
        """The handle of the stream that torch's own work goes to; a CPU has none."""
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def _on_device(self, array: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        return torch.from_numpy(array).to(self.device)

"""Runs the model with torch, pools changed in place."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from legokv.model.config import ModelConfig
from legokv.model.decoder import decoder_from_weights
from legokv.runners.attention_forms import AttentionForm
from legokv.runners.packed_weights import pack_decoder
from legokv.runners.page_store import PageStore, page_blocks
from legokv.step.batch import StepBatch
from legokv.step.graph import graph_shape


class TorchRunner:
    """A runner over `weights` on the host, in their dtype: shared, but for packed bfloat16 layers.

    `attention` is the form of the two ops that it uses, made for the same `config`.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        attention: AttentionForm,
        *,
        num_pages: int,
        page_size: int,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.attention = attention
        self._decoder = decoder_from_weights(config, weights)
        pack_decoder(self._decoder)
        dtype = str(self._decoder.embed.weight.dtype).removeprefix("torch.")
        graph = graph_shape(config, dtype, page_size)
        self.device = torch.device("cpu")
        self._store = PageStore(graph, num_pages, self.device)

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        pools = self._store.pools
        with self.attention.step(batch, pools) as attend:
            logits: Tensor = self._decoder(
                torch.from_numpy(batch.input_ids), torch.from_numpy(batch.logit_rows), pools, attend
            )[0]
        return logits

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._store.copy_pages(sources, targets)

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        numbers = torch.from_numpy(np.asarray(pages, np.int32))
        blocks = page_blocks(kv, len(pages), self.page_size)
        for pool, block in zip(self._store.pools, blocks, strict=True):
            self.attention.kv_import(pool, block, numbers)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        return self._store.export_pages(pages, num_tokens)

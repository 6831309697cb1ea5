"""Runs the model with torch, pools changed in place."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from legokv.batch import StepBatch
from legokv.config import ModelConfig
from legokv.model.decoder import decoder_from_weights
from legokv.runners.attention_forms import AttentionForm
from legokv.runners.packed_weights import pack_linear_layers


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
        pack_linear_layers(self._decoder.layers)
        shape = (num_pages, 2, page_size, config.num_kv_heads, config.head_size)
        dtype = self._decoder.embed.weight.dtype
        self._pools = [torch.zeros(shape, dtype=dtype) for _ in range(config.num_layers)]

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        with self.attention.step(batch, self._pools) as attend:
            logits: Tensor = self._decoder(
                torch.from_numpy(batch.input_ids),
                torch.from_numpy(batch.logit_rows),
                self._pools,
                attend,
            )[0]
        return logits

    @torch.inference_mode()
    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for pool in self._pools:
            pool[list(targets)] = pool[list(sources)]

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        num_tokens = kv.shape[2]
        padding = len(pages) * self.page_size - num_tokens
        padded = torch.nn.functional.pad(kv, (0, 0, 0, 0, 0, padding))
        blocks = padded.view(
            len(self._pools), 2, len(pages), self.page_size, *kv.shape[3:]
        ).transpose(1, 2)
        numbers = torch.from_numpy(np.asarray(pages, np.int32))
        for pool, block in zip(self._pools, blocks, strict=True):
            self.attention.kv_import(pool, block, numbers)

    @torch.inference_mode()
    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        numbers = torch.from_numpy(np.asarray(pages, np.int64))
        layers = [
            pool.index_select(0, numbers).transpose(0, 1).flatten(1, 2) for pool in self._pools
        ]
        return torch.stack(layers)[:, :, :num_tokens].contiguous()

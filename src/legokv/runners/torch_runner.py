"""Runs the model with torch, pools changed in place."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from legokv.batch import StepBatch
from legokv.config import ModelConfig
from legokv.model.decoder import Attention, decoder_from_weights
from legokv.ops.attention_tiles import StepTables, step_tables
from legokv.ops.kv_import import kv_import_in_place
from legokv.ops.paged_attention import attend_in_place
from legokv.rope import inverse_frequencies, score_factor


class TorchRunner:
    """A runner over `weights` (shared, not copied) on the host, in the weights' dtype."""

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        *,
        num_pages: int,
        page_size: int,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._decoder = decoder_from_weights(config, weights)
        self._dtype = self._decoder.embed.weight.dtype
        shape = (num_pages, 2, page_size, config.num_kv_heads, config.head_size)
        self._pools = [torch.zeros(shape, dtype=self._dtype) for _ in range(config.num_layers)]
        self._inv_freq = torch.tensor(
            inverse_frequencies(config.rope, config.head_size, config.max_positions),
            dtype=torch.float32,
        )
        self._scale = score_factor(config.rope, config.max_positions) / config.head_size**0.5

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        tables = step_tables(
            torch.from_numpy(batch.positions),
            torch.from_numpy(batch.key_positions),
            torch.from_numpy(batch.slots),
            torch.from_numpy(batch.query_start),
            torch.from_numpy(batch.pages),
            self._inv_freq,
            page_size=self.page_size,
            dtype=self._dtype,
        )
        logits: Tensor = self._decoder(
            torch.from_numpy(batch.input_ids),
            torch.from_numpy(batch.logit_rows),
            self._pools,
            self._attention(tables),
        )[0]
        return logits

    def _attention(self, tables: StepTables) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
            return attend_in_place(q, k, v, pool, tables, self._scale), pool

        return attend

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
            kv_import_in_place(pool, block, numbers)

    @torch.inference_mode()
    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        numbers = torch.from_numpy(np.asarray(pages, np.int64))
        layers = [
            pool.index_select(0, numbers).transpose(0, 1).flatten(1, 2) for pool in self._pools
        ]
        return torch.stack(layers)[:, :, :num_tokens].contiguous()

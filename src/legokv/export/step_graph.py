"""One step of the model as a module of the graph's inputs: what the ONNX file is traced from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from legokv.model.decoder import Decoder
from legokv.model.rope import inverse_frequencies, score_factor
from legokv.ops.kv_import import kv_import
from legokv.ops.legolink_attention import legolink_attention


class StepGraph(nn.Module):
    """Imports the arriving pages into the pools, then runs the decoder over them.

    The inputs and outputs are those of `legokv.step.graph`, in its order.
    """

    inv_freq: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        config = decoder.config
        frequencies = inverse_frequencies(config.rope, config.head_size, config.max_positions)
        self.register_buffer("inv_freq", torch.tensor(frequencies, dtype=torch.float32))
        self.scale = score_factor(config.rope, config.max_positions) / config.head_size**0.5

    def forward(  # noqa: PLR0913 - the graph's inputs
        self,
        input_ids: Tensor,
        positions: Tensor,
        key_positions: Tensor,
        slots: Tensor,
        query_start: Tensor,
        pages: Tensor,
        logit_rows: Tensor,
        pools: Sequence[Tensor],
        import_pages: Tensor,
        import_blocks: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        def attention(q: Tensor, k: Tensor, v: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
            tables = (positions, key_positions, slots, query_start, pages, self.inv_freq)
            out, pool_out = legolink_attention(q, k, v, pool, *tables, self.scale)
            return out, pool_out

        imported = [
            kv_import(pool, block, import_pages)
            for pool, block in zip(pools, import_blocks, strict=True)
        ]
        logits, pools_out = self.decoder(input_ids, logit_rows, imported, attention)
        return logits, pools_out

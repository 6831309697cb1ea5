"""One step of the model as a module of a graph's inputs: what an ONNX file is traced from."""

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from legokv.model.config import LayerKind
from legokv.model.decoder import Decoder
from legokv.model.rope import layer_frequencies, layer_scale
from legokv.ops.kv_import import kv_import
from legokv.ops.legolink_attention import legolink_attention
from legokv.ops.scored_attention import scored_attention


class _Rotations(nn.Module):
    """A decoder with what attention needs of each of its layers."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        config = decoder.config
        names: dict[LayerKind, str] = {}
        for kind in dict.fromkeys(config.layers):
            names[kind] = f"inv_freq_{len(names)}" if names else "inv_freq"
            frequencies = torch.tensor(layer_frequencies(kind, config), dtype=torch.float32)
            self.register_buffer(names[kind], frequencies)
        # By layer: the buffer of its kind's frequencies, its scores' scale.
        self._rotations = [(names[kind], layer_scale(kind, config)) for kind in config.layers]

    def rotation(self, layer: int) -> tuple[Tensor, float]:
        """A layer's frequencies and scale."""
        name, scale = self._rotations[layer]
        return getattr(self, name), scale


class StepGraph(_Rotations):
    """Imports the arriving pages into the pools where they are inputs, then runs the decoder.

    The inputs and outputs are those of `legokv.step.graph`, in its order.
    """

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
        import_pages: Tensor | None = None,
        import_blocks: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        def attention(
            layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
        ) -> tuple[Tensor, Tensor]:
            inv_freq, scale = self.rotation(layer)
            tables = (positions, key_positions, slots, query_start, pages, inv_freq)
            out, pool_out = legolink_attention(q, k, v, pool, *tables, scale)
            return out, pool_out

        if import_pages is not None:
            pools = [
                kv_import(pool, block, import_pages)
                for pool, block in zip(pools, import_blocks, strict=True)
            ]
        logits, pools_out = self.decoder(input_ids, logit_rows, pools, attention)
        return logits, pools_out


class ScoringGraph(_Rotations):
    """Runs the decoder up to the attention of the last of `layers`, which say what they attend to.

    The inputs and outputs are those of a `ScoringShape`, in its order.
    """

    def __init__(self, decoder: Decoder, layers: range) -> None:
        super().__init__(decoder)
        self._layers = layers

    def forward(  # noqa: PLR0913 - the graph's inputs
        self,
        input_ids: Tensor,
        positions: Tensor,
        key_positions: Tensor,
        slots: Tensor,
        query_start: Tensor,
        pages: Tensor,
        scoring: Tensor,
        pools: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        masses: list[Tensor] = []
        pools_out: list[Tensor] = []

        def attention(
            layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
        ) -> tuple[Tensor, Tensor]:
            inv_freq, scale = self.rotation(layer)
            tables = (positions, key_positions, slots, query_start, pages, inv_freq)
            if layer in self._layers:
                out, pool_out, mass = scored_attention(q, k, v, pool, *tables, scoring, scale)
                masses.append(mass)
            else:
                out, pool_out = legolink_attention(q, k, v, pool, *tables, scale)
            pools_out.append(pool_out)
            return out, pool_out

        self.decoder.attend_first(self._layers.stop, input_ids, pools, attention)
        return reduce(add, masses), pools_out

"""Runs the model with torch, pools changed in place, on a CPU or a GPU."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from legokv.checkpoint.weights import Weight
from legokv.errors import LegokvError
from legokv.model.config import ModelConfig, scoring_layers
from legokv.model.decoder import decoder_from_weights
from legokv.model.dtypes import Dtypes, Int32
from legokv.runners.attention_forms import CPU, AttentionForm, rotations_of
from legokv.runners.drift import drifting
from legokv.runners.key_mass import KeyMass
from legokv.runners.packed_weights import dtype_of, pack_decoder, parted_weights
from legokv.runners.page_store import PageStore, import_stream
from legokv.step.batch import StepBatch
from legokv.step.graph import graph_shape


class EagerRunner:
    """A runner over `weights` in their dtype, shared where they lie on `device` already.

    But a CPU's bfloat16 layers are packed, and weights in blocks stay so where that is faster.
    `attention` is the form of the two ops that it uses, made for the same `config` and device.
    """

    gives_drift = True
    no_attention: str | None = None
    lost: LegokvError | None = None

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Weight],
        attention: AttentionForm,
        device: torch.device = CPU,
        *,
        num_pages: int,
        page_size: int,
    ) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.attention, self.device = attention, device
        self.description = attention.description
        library = attention.library if device.type == "cpu" else None
        self.drawing = library
        ready, in_blocks = parted_weights(weights, library)
        on_device = {name: w if name in in_blocks else w.to(device) for name, w in ready.items()}
        self.decoder = decoder_from_weights(config, on_device)
        if device.type == "cpu":
            pack_decoder(self.decoder, library, in_blocks)
        dtypes = Dtypes.same(str(dtype_of(self.decoder)).removeprefix("torch."))
        graph = graph_shape(config, dtypes, page_size)
        self._store = PageStore(
            graph,
            num_pages,
            device,
            attention.import_kv,
            attention.copy_pages,
            import_stream(device),
        )
        self._rotations = rotations_of(config, device)

    @property
    def pools(self) -> list[Tensor]:
        """One pool [N, 2, S, G, D] for each layer."""
        return self._store.pools

    @torch.inference_mode()
    def attention_mass(self, batch: StepBatch, num_rows: int) -> Tensor:
        config = self.decoder.config
        layers = scoring_layers(config.num_layers)
        mass = KeyMass(batch, num_rows, layers, self.page_size, self.device)
        with self._store.step(batch), self.attention.step(batch, self.pools, mass) as attend:
            self.decoder.attend_first(
                layers.stop, self._on_device(batch.input_ids), self.pools, attend
            )
        return mass.mean(config.num_heads)

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        ids, rows = self._on_device(batch.input_ids), self._on_device(batch.logit_rows)
        pools = self._store.pools
        with self._store.step(batch), self.attention.step(batch, pools) as attend:
            drift = self.attention.drift
            moved = drifting(attend, drift, batch, self._rotations, self.page_size, self.device)
            logits, _ = self.decoder.head_logits(ids, rows, pools, moved)
        is_drawn_as_it_is = self.drawing is not None and logits.dtype == torch.bfloat16
        return logits if is_drawn_as_it_is else logits.to(torch.float32)

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._store.copy_pages(sources, targets)

    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        self._store.import_pages(pages, kv)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        return self._store.export_pages(pages, num_tokens)

    def _on_device(self, array: Int32) -> Tensor:
        return torch.from_numpy(array).to(self._store.device)

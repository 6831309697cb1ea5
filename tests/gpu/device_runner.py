"""The runners that the GPU tests compare: the model on the device, and on the CPU."""

from collections.abc import Sequence

import torch
from gpu_kernels import Kernels, tables_on_device
from torch import Tensor

from legokv.batch import StepBatch
from legokv.bindings import graph_shape
from legokv.config import ModelConfig
from legokv.launchers import AttentionTables, attention_arguments
from legokv.model.decoder import Attention, decoder_from_weights
from legokv.runners import Runner
from legokv.runners.attention_forms import TorchForm, rotation_of
from legokv.runners.page_store import PageStore
from legokv.runners.torch_runner import TorchRunner

Weights = dict[str, Tensor]


def cpu_runner(config: ModelConfig, weights: Weights, num_pages: int, page_size: int) -> Runner:
    return TorchRunner(config, weights, TorchForm(config), num_pages=num_pages, page_size=page_size)


class DeviceRunner:
    """A `Runner` of the decoder on the kernels' device, its attention by the launchers."""

    def __init__(
        self,
        kernels: Kernels,
        config: ModelConfig,
        weights: Weights,
        num_pages: int,
        page_size: int,
    ) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._kernels = kernels
        device = kernels.device
        self._decoder = decoder_from_weights(
            config, {name: weight.to(device) for name, weight in weights.items()}
        )
        dtype = str(self._decoder.embed.weight.dtype).removeprefix("torch.")
        self._store = PageStore(graph_shape(config, dtype, page_size), num_pages, device)
        self._rotation = rotation_of(config)

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        ids, rows = (
            torch.from_numpy(array).to(self._kernels.device)
            for array in (batch.input_ids, batch.logit_rows)
        )
        logits: Tensor = self._decoder(ids, rows, self._store.pools, self._attention(batch))[0]
        return logits.cpu()

    def _attention(self, batch: StepBatch) -> Attention:
        tables = AttentionTables(
            torch.from_numpy(batch.positions),
            torch.from_numpy(batch.key_positions),
            torch.from_numpy(batch.slots),
            torch.from_numpy(batch.query_start),
            torch.from_numpy(batch.pages),
            self._rotation.inv_freq,
            self._rotation.scale,
        )
        tables = tables_on_device(tables, self._kernels.device)

        def attend(q: Tensor, k: Tensor, v: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
            q, k, v = (given.contiguous() for given in (q, k, v))
            arguments = attention_arguments(q, k, v, pool, tables)
            size = self._kernels.launchers.workspace_bytes(arguments)
            workspace = torch.empty(size, dtype=torch.uint8, device=q.device)
            out = torch.full_like(q, torch.nan)
            stream = self._kernels.stream()
            self._kernels.launchers.legolink_attention(arguments, out, workspace, stream)
            return out, pool

        return attend

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._store.copy_pages(sources, targets)

    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        self._store.import_pages(pages, kv)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        return self._store.export_pages(pages, num_tokens)

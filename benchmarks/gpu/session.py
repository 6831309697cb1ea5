"""What a measurement runs on: device, library, model shape, step sizes."""

from dataclasses import dataclass, replace

import torch
from shape import PAGE_SIZE
from work import WorkSizes

from legokv.kernels.gpu import INDEX_TABLES, AttentionTables, Launchers
from legokv.model.config import ModelConfig
from legokv.model.rope import inverse_frequencies
from legokv.step.batch import StepBatch


@dataclass(frozen=True)
class Session:
    """`cold_bytes`: a measurement goes round as many layers' pools as hold that much, so that
    none stays in L2, or round `max_pools`. `import_pages`: of a chunk; splits are swept where a
    sequence has `sweep_keys`."""

    device: torch.device
    launchers: Launchers
    model: ModelConfig
    sizes: WorkSizes
    cold_bytes: int
    max_pools: int
    rounds: int
    import_pages: int
    sweep_keys: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def num_pools(self, pool_bytes: int) -> int:
        return max(1, min(self.max_pools, -(-self.cold_bytes // pool_bytes)))

    def stream(self) -> int:
        """The current stream's handle; the host form has none."""
        return torch.cuda.current_stream().cuda_stream if self.device.type == "cuda" else 0

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def tables(self, batch: StepBatch) -> AttentionTables:
        """The tables of a step, on the device."""
        model = self.model
        frequencies = inverse_frequencies(model.rope, model.head_size, model.max_positions)
        arrays = (
            batch.positions,
            batch.key_positions,
            batch.slots,
            batch.query_start,
            batch.pages,
        )
        return AttentionTables(
            *(torch.from_numpy(array).to(self.device) for array in arrays),
            inv_freq=torch.tensor(frequencies, dtype=torch.float32, device=self.device),
            scale=model.head_size**-0.5,
        )

    def shared(self, batch: StepBatch, tables: AttentionTables) -> AttentionTables | None:
        """A step's `tables` with what its sequences share listed; None where that is nothing."""
        if len(batch.pages) < 2:
            return None
        model = self.model
        num_pages = int(batch.pages[..., 0].max()) + 1
        # Only its shape and where it lies are asked for.
        pool = torch.empty(1, dtype=self.dtype, device=self.device).expand(
            num_pages, 2, PAGE_SIZE, model.num_kv_heads, model.head_size
        )
        index = {name: torch.from_numpy(getattr(batch, name)) for name in INDEX_TABLES}
        found = self.launchers.list_shared(index, model.num_heads, pool)
        return None if found is None else replace(tables, pages=found[0], shared=found[1])

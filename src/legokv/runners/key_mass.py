"""How much attention the last rows of one sequence pay to each key, layer by layer of a step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from legokv.kernels.gpu import AttentionTables
from legokv.model.decoder import Attention
from legokv.ops.scored_attention import key_mass
from legokv.step.batch import StepBatch


class KeyMass:
    """Gathers the masses of a batch of one sequence, whose table lists all keys from position 0 on.

    `scoring` int32 [1] is what scored_attention takes: the last `num_rows` rows score keys. `one`
    float32 [1, P, S] has room for what it gives of one of the `layers`, which is added then.
    """

    def __init__(
        self, batch: StepBatch, num_rows: int, layers: range, page_size: int, device: torch.device
    ) -> None:
        self.layers = layers
        self.scoring = torch.tensor([num_rows], dtype=torch.int32, device=device)
        shape = (1, batch.pages.shape[1], page_size)
        self._total = torch.zeros(shape, device=device)
        self.one = torch.empty(shape, device=device)
        first, filled = torch.from_numpy(batch.pages[0, :, 2:]).long().unbind(1)
        slot = torch.arange(page_size)
        self._used = slot < filled[:, None]
        self._order = (first[:, None] + slot)[self._used].argsort()

    def add(self, mass: Tensor) -> None:
        self._total += mass

    def mean(self, num_heads: int) -> Tensor:
        """float32 [n] on the host, by position: the mean over layers, heads and rows."""
        by_position = self._total.cpu()[0][self._used][self._order]
        return by_position / (num_heads * len(self.layers) * int(self.scoring))


def scored_by_torch(
    attend: Attention, mass: KeyMass | None, tables: Sequence[AttentionTables]
) -> Attention:
    """The same attention, its masses found beside it; `tables` are each layer's."""
    if mass is None:
        return attend

    def scored(layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        out, pool = attend(layer, q, k, v, pool)
        if layer in mass.layers:
            t = tables[layer]
            index = (t.positions, t.query_start, t.pages, t.inv_freq)
            mass.add(key_mass(q, pool, *index, mass.scoring, t.scale))
        return out, pool

    return scored

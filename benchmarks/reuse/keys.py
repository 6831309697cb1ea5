"""The keys and values that a placed prompt sees, gathered from its pages in order of position."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.reuse.linked_model import LinkedModel, Placed
from legokv.ops.rotary import cos_sin, rotate
from legokv.runners.attention_forms import by_layer
from legokv.step.batch import visible


@dataclass(frozen=True)
class KeyPlaces:
    """Where each key of a prompt lies: pool page and slot, and the turn to its absolute position.

    pages, slots int64 [n], in order of position; turns: of each layer, cosine and sine of the base,
    float32 [n, 1, D/2].
    """

    pages: Tensor
    slots: Tensor
    turns: Sequence[tuple[Tensor, Tensor]]

    def keys(self, layer: int, pool: Tensor) -> Tensor:
        """float32 [n, G, D] of a layer and its pool, rotated by absolute position."""
        return rotate(pool[self.pages, 0, self.slots], *self.turns[layer])

    def values(self, pool: Tensor) -> Tensor:
        """float32 [n, G, D]."""
        return pool[self.pages, 1, self.slots].float()


def key_places(model: LinkedModel, placed: Placed) -> KeyPlaces:
    """All keys at or before the prompt's last token."""
    table = visible(placed.bound.table, placed.link.prompt_tokens - 1)
    page, base, first, filled = torch.from_numpy(table).long().unbind(1)
    slot = torch.arange(model.page_size)
    used = slot < filled[:, None]
    positions = (first[:, None] + slot)[used]
    order = positions.argsort()
    bases = base[:, None].expand_as(used)[used][order]
    return KeyPlaces(
        page[:, None].expand_as(used)[used][order],
        slot.expand_as(used)[used][order],
        by_layer(model.rotations, lambda rotation: cos_sin(bases[:, None], rotation.inv_freq)),
    )

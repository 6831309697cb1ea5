"""How far a method's keys and values are from full recompute's, by place within the chunk."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.reuse.keys import key_places
from benchmarks.reuse.linked_model import LinkedModel, Placed

EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Where the bins of places within a chunk begin; the last is open."""


@dataclass(frozen=True)
class PromptKV:
    """Keys (by absolute position) and values of all layers: each float32 [L, n, G * D]."""

    keys: Tensor
    values: Tensor


def gather(model: LinkedModel, placed: Placed) -> PromptKV:
    """Of a computed prompt, before its pages are released."""
    places = key_places(model, placed)
    keys = torch.stack([places.keys(n, pool).flatten(1) for n, pool in enumerate(model.pools)])
    values = torch.stack([places.values(pool).flatten(1) for pool in model.pools])
    return PromptKV(keys, values)


def errors(found: PromptKV, full: PromptKV, lengths: list[int]) -> dict[str, list[list[float]]]:
    """Relative error, mean over tokens, by layer and bin: NaN-free, None where a bin is empty.

    `lengths` are the chunks' in prompt order; the one at position 0 is left out, being exact.
    """
    starts = torch.tensor([sum(lengths[:n]) for n in range(1, len(lengths))])
    tokens = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths[1:], strict=True)])
    within = torch.cat([torch.arange(n) for n in lengths[1:]])
    bins = torch.bucketize(within, torch.tensor(EDGES), right=True) - 1
    return {
        "keys": _binned(found.keys, full.keys, tokens, bins),
        "values": _binned(found.values, full.values, tokens, bins),
    }


def _binned(found: Tensor, full: Tensor, tokens: Tensor, bins: Tensor) -> list[list[float]]:
    wanted = full[:, tokens]
    relative = (found[:, tokens] - wanted).norm(dim=2) / wanted.norm(dim=2).clamp_min(1e-9)
    # An empty bin's mean is NaN, which JSON has no word for: bins of a prompt are filled in order.
    filled = range(int(bins.max()) + 1)
    means = torch.stack([relative[:, bins == number].mean(1) for number in filled], 1)
    return [[round(value, 5) for value in layer] for layer in means.tolist()]

"""Query-aware choice (the idea of ProphetKV): the tokens that the question attends to most.

A first pass with nothing recomputed collects the question's attention to every key, averaged over
rows, heads and layers.
"""

import torch

from benchmarks.reuse import selections
from benchmarks.reuse.attention_probe import AttentionProbe
from benchmarks.reuse.linked_model import LinkedModel
from legokv.chunks.chunk import Chunk
from legokv.link.policy import Policy, nothing


def policy(
    model: LinkedModel, chunks: list[Chunk], question: tuple[int, ...], percent: float
) -> Policy:
    """The `percent` % of cached tokens with the most attention."""
    placed = model.place([*chunks, question], nothing)
    try:
        probe = AttentionProbe(model, placed, len(question))
        model.compute(placed, watch=probe)
    finally:
        model.release(placed)
    return selections.best(torch.stack(probe.by_layer).mean(0).numpy(), percent)

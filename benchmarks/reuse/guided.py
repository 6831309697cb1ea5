"""Query-aware scores (the idea of ProphetKV): how much the question attends to each token.

Found by the first pass, with nothing recomputed, and averaged over rows, heads and layers.
"""

import torch

from benchmarks.reuse.attention_probe import AttentionProbe
from benchmarks.reuse.linked_model import LinkedModel
from legokv.chunks.chunk import Chunk
from legokv.link.policy import Scores


def scores(model: LinkedModel, chunks: list[Chunk], question: tuple[int, ...]) -> Scores:
    """The attention that each token of the prompt gets."""
    placement = model.place([*chunks, question])
    placed = model.bind(placement.first_pass())
    try:
        probe = AttentionProbe(model, placed, placement.question_tokens)
        model.compute(placed, watch=probe)
    finally:
        model.release(placed)
    by_token: Scores = torch.stack(probe.by_layer).mean(0).numpy()
    return by_token

"""CacheBlend's choice (arXiv 2405.16444): the tokens whose values of layer 1 differ most.

Layer 0 runs over all tokens; its keys and values do not depend on what stands before, so the link
that follows goes on exactly as if it had gone on from there.
"""

import torch

from benchmarks.reuse import selections
from benchmarks.reuse.keys import key_places
from benchmarks.reuse.linked_model import LinkedModel
from legokv.chunks.chunk import Chunk
from legokv.link.policy import Policy, everything, nothing
from legokv.model.decoder import Layer


def policy(
    model: LinkedModel, chunks: list[Chunk], question: tuple[int, ...], percent: float
) -> Policy:
    """The `percent` % of cached tokens that layer 1 finds farthest from their stored values."""
    stored = model.place([*chunks, question], nothing)
    try:
        old = key_places(model, stored).values(model.pools[1])
    finally:
        model.release(stored)
    placed = model.place([*chunks, question], everything)
    try:
        x = model.first_layer(model.batch_of(placed))
    finally:
        model.release(placed)
    difference = (_values(model, x) - old).flatten(1).norm(dim=1)
    return selections.best(difference.numpy(), percent)


@torch.inference_mode()
def _values(model: LinkedModel, x: torch.Tensor) -> torch.Tensor:
    """Layer 1's values of x [T, hidden]: float32 [T, G, D]."""
    layer = model.decoder.layers[1]
    assert isinstance(layer, Layer), "a decoder's layers are of this type"
    qkv: torch.Tensor = layer.qkv(layer.attention_norm(x)).view(len(x), -1, layer.head_size)
    return qkv[:, -layer.heads[2] :].float()

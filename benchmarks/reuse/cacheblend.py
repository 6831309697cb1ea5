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
from legokv.runners.eager import EagerRunner
from legokv.step.batch import StepBatch


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
        new = _values(model.runner, model.batch_of(placed))
    finally:
        model.release(placed)
    difference = (new - old).flatten(1).norm(dim=1)
    return selections.best(difference.numpy(), percent)


@torch.inference_mode()
def _values(runner: EagerRunner, batch: StepBatch) -> torch.Tensor:
    """Layer 1's values of all tokens of the batch: float32 [T, G, D]."""
    first, second = runner.decoder.layers[:2]
    assert isinstance(second, Layer), "a decoder's layers are of this type"
    with runner.attention.step(batch, runner.pools) as attend:
        x = runner.decoder.embed(torch.from_numpy(batch.input_ids))
        x, _ = first(x, runner.pools[0], attend)
    qkv: torch.Tensor = second.qkv(second.attention_norm(x)).view(len(x), -1, second.head_size)
    return qkv[:, -second.heads[2] :].float()

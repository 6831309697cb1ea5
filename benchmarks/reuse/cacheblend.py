"""CacheBlend's scores (arXiv 2405.16444): how far off each token's values of layer 1 are.

Layer 0 runs over all tokens; its keys and values do not depend on what stands before, so the link
that follows goes on exactly as if it had gone on from there.
"""

import torch

from benchmarks.reuse.keys import key_places
from benchmarks.reuse.linked_model import LinkedModel
from legokv.chunks.chunk import Chunk
from legokv.link.policy import Scores, everything
from legokv.model.decoder import Layer
from legokv.runners.eager import EagerRunner
from legokv.step.batch import StepBatch


def scores(model: LinkedModel, chunks: list[Chunk], question: tuple[int, ...]) -> Scores:
    """How far layer 1 finds each token of the prompt from its stored values."""
    placement = model.place([*chunks, question])
    stored = model.bind(placement.first_pass())
    try:
        old = key_places(model, stored).values(model.pools[1])
    finally:
        model.release(stored)
    placed = model.bind(placement.link(everything))
    try:
        new = _values(model.runner, model.batch_of(placed))
    finally:
        model.release(placed)
    difference: Scores = (new - old).flatten(1).norm(dim=1).numpy()
    return difference


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

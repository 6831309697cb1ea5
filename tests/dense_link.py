"""What a link is to compute, densely: stored KV as it is, but for what is recomputed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from legokv import Engine
from legokv.chunks.chunk import Chunk
from legokv.model.config import ModelConfig
from legokv.model.rope import inverse_frequencies, score_factor


def dense_logits(
    engine: Engine,
    chunks: Sequence[Chunk],
    question: Sequence[int],
    chosen: Sequence[int],
    mass: list[Tensor] | None = None,
    drifting: Sequence[range] = (),
) -> Tensor:
    """Logits behind the chunks, each in the pool, and a question, float32 [V].

    chosen: positions of cached tokens that are recomputed, ascending. mass: gets what the question
    attends to in each layer, the mean over its tokens and heads, float32 [n]. drifting: positions
    of documents whose other tokens move as those did on the mean that are chosen of them.
    """
    config = engine.facts.model
    stored = torch.cat([_stored(engine, chunk) for chunk in chunks], dim=2)
    lengths = torch.tensor([chunk.num_tokens for chunk in chunks])
    starts = lengths.cumsum(0) - lengths
    bases = (starts - torch.tensor([chunk.start for chunk in chunks])).repeat_interleave(lengths)
    ids = [token for chunk in chunks for token in chunk.token_ids] + list(question)
    positions = torch.tensor([*chosen, *range(len(bases), len(ids))])

    def attention(
        layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
    ) -> tuple[Tensor, Tensor]:
        keys, values = (torch.zeros(len(ids), *k.shape[1:]) for _ in range(2))
        # As they are before rotation.
        places = torch.arange(len(bases)) - bases
        keys[: len(bases)] = _turned(stored[layer, 0], -places, config, layer)
        values[: len(bases)] = stored[layer, 1]
        for document in drifting:
            rows = [row for row, at in enumerate(positions.tolist()) if at in document]
            for held, fresh in ((keys, k), (values, v)):
                held[document.start : document.stop] += _drift(fresh[rows] - held[positions[rows]])
        keys = _turned(keys, torch.arange(len(ids)), config, layer)
        keys[positions] = _turned(k, positions, config, layer)
        values[positions] = v
        if mass is not None:
            mass.append(_mean_attention(config, layer, _turned(q, positions, config, layer), keys))
        out = scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (_turned(q, positions, config, layer), keys, values)),
            attn_mask=torch.arange(len(ids)) <= positions[:, None],
            scale=score_factor(config.layers[layer].rope, config.max_positions)
            / config.head_size**0.5,
            enable_gqa=True,
        )
        return out.transpose(0, 1), pool

    pools = [torch.zeros(1)] * config.num_layers
    last = torch.tensor([len(positions) - 1])
    with torch.inference_mode():
        logits, _ = engine.runner.decoder(torch.tensor(ids)[positions], last, pools, attention)
    return logits[0]


def _drift(moves: Tensor) -> Tensor:
    """The mean of moves [r, G, D], less what of it may be chance, float32 [G, D]."""
    mean = moves.mean(0)
    chance = (moves - mean).square().sum((0, 2)) / (len(moves) - 1) / len(moves)
    return mean * (1 - chance / mean.square().sum(1).clamp(min=1e-30)).clamp(min=0)[:, None]


def _mean_attention(config: ModelConfig, layer: int, q: Tensor, keys: Tensor) -> Tensor:
    """Of the last rows of q, which follow one another to the last key."""
    factor = score_factor(config.layers[layer].rope, config.max_positions) / config.head_size**0.5
    by_head = keys.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1)
    scores = torch.einsum("thd,nhd->htn", q, by_head) * factor
    mask = torch.ones(len(q), len(keys)).triu(len(keys) - len(q) + 1).bool()
    return scores.masked_fill(mask, -torch.inf).softmax(-1).mean((0, 1))


def _stored(engine: Engine, chunk: Chunk) -> Tensor:
    resident = engine.cache.find(chunk.key)
    assert resident is not None, "the chunk was compiled"
    return engine.runner.export_pages(resident.pages, chunk.num_tokens)


def _turned(x: Tensor, by: Tensor, config: ModelConfig, layer: int) -> Tensor:
    rope = config.layers[layer].rope
    frequencies = inverse_frequencies(rope, config.head_size, config.max_positions)
    angles = by[:, None] * torch.tensor(frequencies)
    pairs = (
        torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    return torch.cat([pairs.real, pairs.imag], dim=-1)

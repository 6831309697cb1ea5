"""Steps whose sequences stand on chunks in common, at bases of their own, as linking makes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from attention_cases import Inputs
from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.kernels.gpu import INDEX_TABLES, AttentionTables
from legokv.link.link import bind, link
from legokv.link.policy import legolink
from legokv.step.batch import Piece, StepBatch, step_batch

Asked = tuple[tuple[int, ...], int, int]
"""Of a sequence its chunks' numbers, how many fresh tokens, and how many of the last are asked."""


@dataclass(frozen=True)
class Sizes:
    """Of a model's heads, its pool, and the chunks by their lengths in tokens."""

    heads: tuple[int, int] = (6, 2)
    head_size: int = 64
    page_size: int = 16
    chunks: tuple[int, ...] = (130, 97, 83, 9)
    num_pages: int = 400


def asking(
    orders: Sequence[Asked], sizes: Sizes, *, link_tokens: int = 16, seed: int = 0
) -> StepBatch:
    """A step of the last tokens of prompts over the chunks; pages are shuffled by `seed`."""
    size = sizes.page_size
    free = iter(np.random.default_rng(seed).permutation(sizes.num_pages).tolist())
    chunks = [Chunk(str(n), "", (0,) * length) for n, length in enumerate(sizes.chunks)]
    stored = [[next(free) for _ in range(-(-length // size))] for length in sizes.chunks]
    pieces = []
    for numbers, num_fresh, num_asked in orders:
        made = link([*(chunks[n] for n in numbers), [0] * num_fresh], legolink(link_tokens), size)
        pages = [stored[int(chunk.key)] for chunk in made.chunks]
        bound = bind(made, pages, [next(free) for _ in range(made.num_private_pages)], size)
        arrays = (made.token_ids, made.positions, made.key_positions, bound.slots)
        pieces.append(Piece(*(array[-num_asked:] for array in arrays), bound.table))
    return step_batch(pieces)


def inputs_of(batch: StepBatch, sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Random tensors for the step; slots past a page's filled ones are NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    count, (num_heads, num_kv_heads), size = len(batch.positions), sizes.heads, sizes.head_size
    pool = normal(sizes.num_pages, 2, sizes.page_size, num_kv_heads, size)
    index = {name: torch.from_numpy(getattr(batch, name)) for name in INDEX_TABLES}
    filled = torch.zeros(sizes.num_pages, dtype=torch.int64)
    for page, _, _, slots in index["pages"].reshape(-1, 4).tolist():
        filled[page] = max(int(filled[page]), slots)
    pool.transpose(1, 2)[torch.arange(sizes.page_size) >= filled[:, None]] = torch.nan
    inv_freq = 10000.0 ** -(torch.arange(0, size, 2) / size)
    return Inputs(
        q=normal(count, num_heads, size),
        k=normal(count, num_kv_heads, size),
        v=normal(count, num_kv_heads, size),
        pool=pool,
        tables=AttentionTables(**index, inv_freq=inv_freq, scale=size**-0.5),
    )

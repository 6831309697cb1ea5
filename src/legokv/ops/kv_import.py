"""Putting stored pages into a layer's pool."""

import torch
from torch import Tensor


def kv_import_in_place(pool: Tensor, block: Tensor, pages: Tensor) -> None:
    """Write block [M, 2, S, G, D] over pages int32 [M] of pool [N, 2, S, G, D], converted."""
    pool[pages.long()] = block.to(pool.dtype)


@torch.library.custom_op("legokv::kv_import", mutates_args=())
def kv_import(pool: Tensor, block: Tensor, pages: Tensor) -> Tensor:
    """The pool [N, 2, S, G, D] with `block` [M, 2, S, G, D] in place of its `pages` int32 [M].

    The block's dtype may differ from the pool's and is converted. M may be 0. A page named twice
    holds either of its blocks.
    """
    pool = pool.clone()
    kv_import_in_place(pool, block, pages)
    return pool


@kv_import.register_fake
def _(pool: Tensor, block: Tensor, pages: Tensor) -> Tensor:
    return torch.empty_like(pool)

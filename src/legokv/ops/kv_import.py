"""Putting stored pages into a layer's pool, and copying pages that lie there."""

import torch
from torch import Tensor


def kv_import_in_place(pool: Tensor, block: Tensor, pages: Tensor) -> None:
    """Write block [M, 2, S, G, D] over pages int32 [M] of pool [N, 2, S, G, D], converted."""
    pool[pages.long()] = block.to(pool.dtype)


def import_stored(pools: Tensor, kv: Tensor, pages: Tensor) -> None:
    """Put stored kv [L, 2, n, G, D] over pages int32 [M] of pools [L, N, 2, S, G, D], converted.

    Token i goes to slot i % S of page i // S; the last page's slots past n become zeros.
    """
    size = pools.shape[3]
    num_full, num_rest = divmod(kv.shape[2], size)
    numbers = pages.long()
    whole = kv[:, :, : num_full * size].reshape(*kv.shape[:2], num_full, size, *kv.shape[3:])
    pools[:, numbers[:num_full]] = whole.transpose(1, 2).to(pools.dtype)
    if num_rest:
        last = pools[:, numbers[num_full]]
        last.zero_()
        last[:, :, :num_rest] = kv[:, :, num_full * size :]


def copy_pages(pools: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy pages int32 [M] in each of pools [L, N, 2, S, G, D]; no target is a source."""
    read, written = sources.long(), targets.long()
    for pool in pools:
        pool.index_copy_(0, written, pool.index_select(0, read))


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

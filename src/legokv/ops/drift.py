"""Drift: documents' keys and values moved as their recomputed tokens did on the mean.

A link leaves most of a document as it was computed somewhere else. What is recomputed tells how
far: fresh less stored, per KV head, keys before their rotation. The mean is shrunk towards 0 by
its own noise (James and Stein 1961, the positive part) and added to all that stays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from legokv.ops.rotary import rotate


@dataclass(frozen=True)
class DriftTables:
    """Where n documents lie in a pool [N, 2, S, G, D]; R of a step's T tokens are theirs.

    documents int32 [n, 4], on the host: a document's first token in the step and how many are its,
        its first of the M pages and how many are its. Tokens and pages go on from one document to
        the next.
    stored int32 [R]: where the tokens' stored KV lies, page * S + slot.
    pages int32 [2, M]: stored pages, and those that they move to.
    row_turns, page_turns: cosines and sines of key positions, float32 [R, D] and [M, D], of a
        page's first slot; slot_turns float32 [S, D]: of positions 0 to S - 1.
    """

    documents: Tensor
    stored: Tensor
    pages: Tensor
    row_turns: Tensor
    page_turns: Tensor
    slot_turns: Tensor


def drift_in_place(pool: Tensor, k: Tensor, v: Tensor, tables: DriftTables) -> None:
    """Write where the documents move to, by the step's fresh k and v [T, G, D], not rotated."""
    page_size, first_row = pool.shape[2], 0
    for first, num_rows, first_page, num_pages in tables.documents.tolist():
        rows = slice(first_row, first_row + num_rows)
        tokens = slice(first, first + num_rows)
        pages = slice(first_page, first_page + num_pages)
        at = tables.stored[rows].long()
        stored = pool[at // page_size, :, at % page_size]
        cos, sin = tables.row_turns[rows, None].chunk(2, -1)
        key_move = shrunk_mean(k[tokens].float() - rotate(stored[:, 0], cos, -sin))
        value_move = shrunk_mean(v[tokens].float() - stored[:, 1].float())
        source, own = tables.pages[:, pages].long()
        moved = pool[source].float()
        at_page = rotate(key_move, *tables.page_turns[pages, None, None].chunk(2, -1))
        moved[:, 0] += rotate(at_page, *tables.slot_turns[:, None].chunk(2, -1))
        moved[:, 1] += value_move
        pool[own] = moved.to(pool.dtype)
        first_row += num_rows


def shrunk_mean(differences: Tensor) -> Tensor:
    """The mean [G, D] of differences float32 [r, G, D], r of 2 or more.

    Times 1 - noise / |mean|^2, at least 0, of each head: noise is the mean's variance, summed
    over D.
    """
    mean = differences.mean(0)
    noise = differences.var(0).sum(-1, keepdim=True) / len(differences)
    square = mean.square().sum(-1, keepdim=True)
    # Where nothing moved there is no noise either.
    return mean * (1 - noise / square.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0)

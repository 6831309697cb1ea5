"""How many rows oneDNN may multiply together so that none of them notices the others.

Its kernels cut the sum of a result's products by the number of rows, the processor and the number
of threads, and a sum cut elsewhere is rounded elsewhere. So each number is tried once a shape.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# The layout that oneDNN chooses for a lone row: its kernels with AMX cut no sum that fits a core's
# cache, and up to some number of rows. For that of 8 rows and more they cut by the first cache.
LAYOUT_ROWS = 1
# Rows of a tile of AMX: fewer cost what so many do.
_TILE_ROWS = 16
_TRIED = (1, 2, 4, 8, *range(16, 256, 16), *range(256, 513, 64))
# Of a step's head or of another wide layer fewer rows are tried, as this takes time.
_MOST_RESULTS = 2**22


@dataclass(frozen=True)
class RowCounts:
    """Numbers of rows that give each row the same bits: `at_least[n]` is the first from n on."""

    at_least: tuple[int, ...]

    @property
    def largest(self) -> int:
        return len(self.at_least) - 1


@cache
def row_counts(shape: tuple[int, int], has_bias: bool, num_threads: int) -> RowCounts:
    """The numbers found for a weight of `shape` [N, K]; torch must compute on `num_threads` now."""
    x, weight = sums_of_nothing(shape)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS)
    bias = torch.zeros(shape[0], dtype=x.dtype) if has_bias else None

    def multiplied(rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        return out

    expected = multiplied(x)

    def agrees(num_rows: int) -> bool:
        copies = -(-num_rows // _TILE_ROWS)
        parts = torch.split(x.repeat(copies, 1), num_rows)
        return torch.equal(torch.cat([*map(multiplied, parts)]), expected.repeat(copies, 1))

    most_rows = max(_TILE_ROWS, _MOST_RESULTS // shape[0])
    return _counts_of(n for n in _TRIED if n <= most_rows and agrees(n))


def _counts_of(agreeing: Iterable[int]) -> RowCounts:
    at_least = [0]
    for num_rows in agreeing:
        at_least += [num_rows] * (num_rows - len(at_least) + 1)
    return RowCounts(tuple(at_least))


def sums_of_nothing(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows x and a weight whose products cancel: what is left tells how they were rounded.

    A twin of each product, with the other sign, is somewhere else in its sum.
    """
    num_columns, num_products = shape
    dice = torch.Generator().manual_seed(0)
    half, odd = divmod(num_products, 2)
    order = torch.randperm(num_products, generator=dice)
    nothing = torch.zeros(_TILE_ROWS, odd)
    x, column = (torch.randn(_TILE_ROWS, half, generator=dice) for _ in range(2))
    rows = torch.cat([x, x, nothing], dim=1)[:, order]
    columns = torch.cat([column, -column, nothing], dim=1)[:, order]
    weight = columns.repeat(-(-num_columns // _TILE_ROWS), 1)[:num_columns]
    return rows.bfloat16(), weight.bfloat16()

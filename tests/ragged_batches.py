"""Random steps of several sequences over pages of several bases, for the attention ops."""

import numpy as np
import torch

PAGE_SIZE = 4


def random_batch(seed):
    """Ragged sequences with pages of several bases; every token's own key is in its table."""
    dice = np.random.Generator(np.random.PCG64(seed))
    free = iter(dice.permutation(64).tolist())
    tokens, starts, tables = [], [0], []
    for _ in range(dice.integers(1, 5)):
        table, position = [], 0
        for _ in range(dice.integers(0, 4)):
            length = int(dice.integers(1, 11))
            base = position - int(dice.integers(0, 3))
            for start in range(0, length, PAGE_SIZE):
                table.append((next(free), base, position + start, min(PAGE_SIZE, length - start)))
            position += length
        length = int(dice.integers(1, 7))
        for start in range(0, length, PAGE_SIZE):
            table.append((next(free), 0, position + start, min(PAGE_SIZE, length - start)))
            for slot in range(min(PAGE_SIZE, length - start)):
                tokens.append((position + start + slot, table[-1][0] * PAGE_SIZE + slot))
        starts.append(len(tokens))
        tables.append(table)
    pages = np.zeros((len(tables), max(map(len, tables)) + 1, 4), np.int32)
    for b, table in enumerate(tables):
        pages[b, : len(table)] = table
    positions, slots = torch.tensor(tokens, dtype=torch.int32).unbind(1)
    return (
        positions.contiguous(),
        slots.contiguous(),
        torch.tensor(starts, dtype=torch.int32),
        torch.from_numpy(pages),
    )

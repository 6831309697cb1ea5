"""Ragged steps for the attention kernels, and what must come out of them, by loops in float64.

The reference is written from the op's meaning alone, another way than the op's own body.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from legokv.kernels.gpu import AttentionTables

NOWHERE = 1 << 30  # a page number no pool has; in rows and slots that must not be followed


@dataclass(frozen=True)
class Sequence:
    """Chunks by their lengths in tokens, and which tokens this step computes (by position)."""

    chunks: tuple[int, ...]
    computed: tuple[int, ...]
    unwritten: tuple[int, ...] = ()  # computed tokens whose slot is negative


@dataclass(frozen=True)
class Step:
    """One attention step to try. `heads` is (query heads, KV heads)."""

    sequences: tuple[Sequence, ...]
    heads: tuple[int, int] = (4, 2)
    head_size: int = 64
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """The op's inputs; slots that hold no key yet are NaN, so whoever reads them is found out."""

    q: Tensor
    k: Tensor
    v: Tensor
    pool: Tensor
    tables: AttentionTables


def whole_chunk(num_tokens: int) -> Sequence:
    """A chunk compiled alone."""
    return Sequence((num_tokens,), tuple(range(num_tokens)))


def linked(chunks: tuple[int, ...], link_tokens: int, fresh: int) -> Sequence:
    """Chunks whose first tokens are computed again, but the first chunk's, then fresh tokens."""
    starts = np.cumsum((0, *chunks)).tolist()
    heads = [
        start + i
        for start, length in zip(starts[1:-1], chunks[1:], strict=True)
        for i in range(min(link_tokens, length))
    ]
    return Sequence((*chunks, fresh), (*heads, *range(starts[-1], starts[-1] + fresh)))


def decoded(num_tokens: int) -> Sequence:
    """The last token of a sequence of that many."""
    return Sequence((num_tokens,), (num_tokens - 1,))


@dataclass
class _Tables:
    """The step's tables while they grow."""

    random: np.random.Generator
    page_size: int
    next_page: int = 0
    rows: list[list[list[int]]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    key_positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])

    def add(self, sequence: Sequence) -> None:
        rows, place_of = self._rows(sequence)
        for position in sequence.computed:
            base, slot = place_of[position]
            self.positions.append(position)
            self.key_positions.append(position - base)
            self.slots.append(-7 if position in sequence.unwritten else slot)
        self.starts.append(len(self.positions))
        rows += [[NOWHERE, 5, 0, 0]] * 2
        self.random.shuffle(rows)
        self.rows.append(rows)

    def _rows(self, sequence: Sequence) -> tuple[list[list[int]], dict[int, tuple[int, int]]]:
        rows, place_of, base = [], {}, 0
        for length in sequence.chunks:
            for first in range(0, length, self.page_size):
                filled = min(self.page_size, length - first)
                for slot in range(filled):
                    place = self.next_page * self.page_size + slot
                    place_of[base + first + slot] = (base, place)
                rows.append([self.next_page, base, base + first, filled])
                self.next_page += 1
            base += length
        return rows, place_of

    def padded_rows(self) -> Tensor:
        width = max((len(rows) for rows in self.rows), default=0)
        padded = [rows + [[NOWHERE, 9, 3, 0]] * (width - len(rows)) for rows in self.rows]
        return torch.tensor(padded, dtype=torch.int32).view(len(self.rows), width, 4)


def make_inputs(step: Step) -> Inputs:
    """Seeded random inputs of a step; page numbers are shuffled over the pool."""
    random = np.random.default_rng(step.seed)
    made = _Tables(random, step.page_size)
    for sequence in step.sequences:
        made.add(sequence)
    num_heads, num_kv_heads = step.heads
    generator = torch.Generator().manual_seed(step.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(step.dtype)

    num_pages, num_tokens = made.next_page + 2, len(made.positions)
    pool = normal(num_pages, 2, step.page_size, num_kv_heads, step.head_size)
    pages = made.padded_rows()
    slots = torch.tensor(made.slots, dtype=torch.int32)
    _forget_unwritten(pool, pages, slots)
    half = step.head_size // 2
    return Inputs(
        q=normal(num_tokens, num_heads, step.head_size),
        k=normal(num_tokens, num_kv_heads, step.head_size),
        v=normal(num_tokens, num_kv_heads, step.head_size),
        pool=pool,
        tables=AttentionTables(
            positions=torch.tensor(made.positions, dtype=torch.int32),
            key_positions=torch.tensor(made.key_positions, dtype=torch.int32),
            slots=slots,
            query_start=torch.tensor(made.starts, dtype=torch.int32),
            pages=pages,
            inv_freq=(10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)).float(),
            scale=1 / math.sqrt(step.head_size),
        ),
    )


def _forget_unwritten(pool: Tensor, pages: Tensor, slots: Tensor) -> None:
    page_size = pool.shape[2]
    holds_key = torch.zeros(pool.shape[0] * page_size, dtype=torch.bool)
    for page, _, _, filled in pages.view(-1, 4).tolist():
        holds_key[page * page_size : page * page_size + filled] = filled > 0
    holds_key[slots[slots >= 0].long()] = False
    pool.transpose(1, 2)[~holds_key.view(pool.shape[0], page_size)] = torch.nan


def _turned(x: np.ndarray, position: int, inv_freq: np.ndarray) -> np.ndarray:
    """x [..., D] as complex numbers (i, i + D/2), each turned by its angle."""
    half = x.shape[-1] // 2
    angle = (np.float32(position) * inv_freq).astype(np.float64)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def expected_pool(inputs: Inputs) -> Tensor:
    """The pool with this step's keys and values written, rounded to its dtype."""
    pool, tables = inputs.pool.clone(), inputs.tables
    page_size = pool.shape[2]
    for t, slot in enumerate(tables.slots.tolist()):
        if slot < 0:
            continue
        key = _turned(inputs.k[t].double().numpy(), int(tables.key_positions[t]),
                      tables.inv_freq.numpy())  # fmt: skip
        pool[slot // page_size, 0, slot % page_size] = torch.from_numpy(key).to(pool.dtype)
        pool[slot // page_size, 1, slot % page_size] = inputs.v[t]
    return pool


def expected_out(inputs: Inputs, pool: Tensor) -> Tensor:
    """The attention's output, float64 [T, H, D], over keys and values of `pool`."""
    tables = inputs.tables
    starts = tables.query_start.tolist()
    out = np.zeros(inputs.q.shape)
    stored = pool.double().numpy()
    for b, rows in enumerate(tables.pages.tolist()):
        for t in range(starts[b], starts[b + 1]):
            q, position = inputs.q[t].double().numpy(), int(tables.positions[t])
            out[t] = _attend(q, position, stored, rows, tables)
    return torch.from_numpy(out)


def _attend(
    q: np.ndarray, position: int, pool: np.ndarray, rows: list[list[int]], tables: AttentionTables
) -> np.ndarray:
    scores, values = [], []
    heads_per_kv_head = q.shape[0] // pool.shape[3]
    for page, base, first_position, filled in rows:
        turned = _turned(q, position - base, tables.inv_freq.numpy()) if filled else q
        for slot in range(min(filled, position - first_position + 1)):
            key = np.repeat(pool[page, 0, slot], heads_per_kv_head, axis=0)
            scores.append(tables.scale * (turned * key).sum(-1))
            values.append(np.repeat(pool[page, 1, slot], heads_per_kv_head, axis=0))
    if not scores:
        return np.zeros_like(q)
    weights = np.exp(np.stack(scores) - np.max(scores, axis=0))
    return (weights[..., None] * np.stack(values)).sum(0) / weights.sum(0)[:, None]

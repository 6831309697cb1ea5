"""Chunks that several sequences see, at whatever bases, are read once for all of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from attention_cases import Inputs
from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.cpu import NativeCalls, StepShape
from legokv.kernels.gpu import AttentionTables
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.link.link import bind, link
from legokv.link.policy import legolink
from legokv.ops.legolink_attention import legolink_attention
from legokv.runners.attention_forms import index_tables
from legokv.step.batch import Piece, StepBatch, step_batch

PAGE_SIZE, NUM_PAGES = 16, 1200
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 6, 2, 64
INV_FREQ = 10000.0 ** -(torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
# By their lengths: parts and more, one part, less than a page's end, and less than a page.
CHUNKS = [Chunk(str(n), "", (0,) * length) for n, length in enumerate((700, 512, 83, 9))]
# Atol for values of about 1, as in test_native_attention.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 2.5e-2}
KERNELS = [
    (each, dtype)
    for each in InstructionSet
    for dtype in TOLERANCE
    if each and (not each.bfloat16_only or dtype == torch.bfloat16)
]
# Of each sequence the chunks' numbers, how many fresh tokens, and how many of the last are asked.
ORDERS = (
    ((0, 1, 2), 5, 1),
    ((2, 1, 0, 3), 21, 1),
    ((1,), 1, 1),
    ((3, 0, 1), 40, 3),
    ((0, 0, 2), 17, 1),
    ((1, 2), 200, 60),
    ((), 30, 30),
)
Asked = tuple[tuple[int, ...], int, int]


@pytest.fixture(scope="module")
def calls() -> NativeCalls:
    return NativeCalls(NativeLibrary(build_native_library(print)))


def asking(orders: Sequence[Asked], link_tokens: int = 16, seed: int = 0) -> StepBatch:
    """A step of the last tokens of prompts over the chunks; pages are shuffled by `seed`."""
    free = iter(np.random.default_rng(seed).permutation(NUM_PAGES).tolist())
    chunk_pages = [[next(free) for _ in range(-(-len(c.token_ids) // PAGE_SIZE))] for c in CHUNKS]
    pieces = []
    for numbers, num_fresh, num_asked in orders:
        made = link(
            [*(CHUNKS[n] for n in numbers), [0] * num_fresh], legolink(link_tokens), PAGE_SIZE
        )
        stored = [chunk_pages[int(chunk.key)] for chunk in made.chunks]
        bound = bind(made, stored, [next(free) for _ in range(made.num_private_pages)], PAGE_SIZE)
        arrays = (made.token_ids, made.positions, made.key_positions, bound.slots)
        pieces.append(Piece(*(array[-num_asked:] for array in arrays), bound.table))
    return step_batch(pieces)


def inputs_of(batch: StepBatch, dtype: torch.dtype, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    count = len(batch.positions)
    return Inputs(
        q=normal(count, NUM_HEADS, HEAD_SIZE),
        k=normal(count, NUM_KV_HEADS, HEAD_SIZE),
        v=normal(count, NUM_KV_HEADS, HEAD_SIZE),
        pool=normal(NUM_PAGES, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_SIZE),
        tables=AttentionTables(**index_tables(batch), inv_freq=INV_FREQ, scale=HEAD_SIZE**-0.5),
    )


def only(inputs: Inputs, sequence: int) -> Inputs:
    """One of its sequences, alone."""
    tables = inputs.tables
    first, end = tables.query_start[sequence : sequence + 2].tolist()
    own = dataclasses.replace(
        tables,
        positions=tables.positions[first:end],
        key_positions=tables.key_positions[first:end],
        slots=tables.slots[first:end],
        query_start=torch.tensor([0, end - first], dtype=torch.int32),
        pages=tables.pages[sequence : sequence + 1],
    )
    return Inputs(
        inputs.q[first:end], inputs.k[first:end], inputs.v[first:end], inputs.pool.clone(), own
    )


def attended(
    calls: NativeCalls,
    inputs: Inputs,
    instruction_set: InstructionSet = InstructionSet.BEST,
    num_threads: int = 2,
) -> tuple[Tensor, int]:
    """Output, and how many keys each KV head brought for it."""
    shape = StepShape(NUM_PAGES, PAGE_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, inputs.pool.dtype)
    options = {"num_threads": num_threads, "instruction_set": instruction_set}
    with calls.step(inputs.tables, shape, **options) as step:
        return step.attend(inputs.q, inputs.k, inputs.v, inputs.pool.clone()), step.num_keys_read


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
def test_rows_over_shared_chunks_equal_the_definition(calls, instruction_set, dtype, num_threads):
    if instruction_set not in calls.instruction_sets():
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    inputs = inputs_of(asking(ORDERS), dtype)
    out, num_keys = attended(calls, inputs, instruction_set, num_threads)
    t = inputs.tables
    expected, _ = legolink_attention(
        *(inputs.q, inputs.k, inputs.v, inputs.pool, t.positions, t.key_positions),
        *(t.slots, t.query_start, t.pages, t.inv_freq, t.scale),
    )
    torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[dtype], rtol=0)
    assert num_keys < int(t.pages[:, :, 3].sum())


@pytest.mark.parametrize("link_tokens", [0, 16, 24, 64])
@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
def test_a_sequence_has_the_bits_that_it_has_alone_whoever_shares_its_chunks(
    calls, instruction_set, dtype, link_tokens
):
    sets = calls.instruction_sets()
    if instruction_set not in sets:
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    inputs = inputs_of(asking(ORDERS, link_tokens, seed=link_tokens), dtype)
    together, _ = attended(calls, inputs, instruction_set)
    for sequence in range(len(ORDERS)):
        first, end = inputs.tables.query_start[sequence : sequence + 2].tolist()
        alone, _ = attended(calls, only(inputs, sequence), instruction_set, num_threads=1)
        assert torch.equal(together[first:end], alone), f"sequence {sequence}"


def test_more_askers_over_the_same_chunks_bring_only_what_is_their_own(calls):
    orders = [((1, 0, 2), 8, 1), ((0, 2, 1), 8, 1), ((2, 0, 1), 8, 1), ((0, 1, 2), 8, 1)]
    _, of_four = attended(calls, inputs_of(asking(orders), torch.float32))
    _, of_64 = attended(calls, inputs_of(asking(orders * 16), torch.float32))
    # Of each chunk but the first its recomputed page, and behind all the question's.
    own = 2 * PAGE_SIZE + 8
    assert of_64 - of_four <= 60 * own
    assert of_four <= 700 + 512 + 83 + 4 * own + 3 * 64


def test_sequences_without_chunks_in_common_bring_what_each_brings_alone(calls):
    inputs = inputs_of(asking([((0,), 5, 1), ((1,), 9, 2), ((2, 3), 6, 1)]), torch.float32)
    _, together = attended(calls, inputs)
    alone = [attended(calls, only(inputs, sequence))[1] for sequence in range(3)]
    assert together == sum(alone)


def test_a_long_piece_and_those_who_decode_bring_together_what_they_bring_apart(calls):
    piece, askers = ((0, 1, 2), 200, 160), [((1, 0, 2), 8, 1), ((2, 1, 0), 8, 1)] * 8
    num_keys = [
        attended(calls, inputs_of(asking(orders), torch.float32))[1]
        for orders in ([piece, *askers], [piece], askers)
    ]
    assert num_keys[0] == num_keys[1] + num_keys[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_of_one_that_are_no_numbers_spoil_no_neighbour(calls, dtype):
    inputs = inputs_of(asking([((1, 0), 8, 1)] * 12), dtype)
    clean, _ = attended(calls, inputs)
    table = inputs.tables.pages[5]
    own = table[(table[:, 1] > 0) & (table[:, 2] == table[:, 1])][0, 0]
    inputs.pool[own] = torch.nan
    out, _ = attended(calls, inputs)
    assert out[5].isnan().all()
    others = [n for n in range(12) if n != 5]
    assert torch.equal(out[others], clean[others])

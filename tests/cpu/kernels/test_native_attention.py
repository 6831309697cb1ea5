"""The CPU library's attention against the op's own body: every instruction set of this machine."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from attention_cases import Inputs, Sequence, Step, decoded, linked, make_inputs, whole_chunk
from paths import ROOT
from ragged_batches import PAGE_SIZE as RAGGED_PAGE_SIZE
from ragged_batches import random_batch
from torch import Tensor

from legokv.errors import LaunchRefused, OutOfMemory
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.cpu import NativeCalls, StepShape
from legokv.kernels.gpu import AttentionTables
from legokv.kernels.native_library import NO_MEMORY, InstructionSet, NativeLibrary
from legokv.ops.kv_import import copy_pages, import_stored, kv_import
from legokv.ops.legolink_attention import legolink_attention

# Absolute, for values of about 1. All sum in float32 and round the result once to its dtype. Pairs
# of bfloat16 are multiplied after rounding the turned query and the weights to 8 bits, too.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
PAIRS_TOLERANCE = 2.5e-2
# One unit in the last place of a rotated key: its sine and cosine are of another library.
KEY_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNELS = [
    (each, dtype)
    for each in InstructionSet
    for dtype in DTYPES
    if each and (not each.bfloat16_only or dtype == torch.bfloat16)
]
RAGGED = (
    whole_chunk(1),
    Sequence((), ()),
    linked((20, 33, 17), link_tokens=5, fresh=4),
    decoded(49),
    Sequence((18,), (0, 3, 17), unwritten=(3,)),
)


@pytest.fixture(scope="module")
def calls() -> NativeCalls:
    return NativeCalls(NativeLibrary(build_native_library(print)))


def shape_of(inputs: Inputs) -> StepShape:
    num_pages, _, page_size, num_kv_heads, head_size = inputs.pool.shape
    num_heads = inputs.q.shape[1]
    return StepShape(num_pages, page_size, num_heads, num_kv_heads, head_size, inputs.pool.dtype)


def native(
    calls: NativeCalls,
    inputs: Inputs,
    instruction_set: InstructionSet = InstructionSet.BEST,
    num_threads: int = 2,
) -> tuple[Tensor, Tensor]:
    pool = inputs.pool.clone()
    with calls.step(
        inputs.tables,
        shape_of(inputs),
        num_threads=num_threads,
        instruction_set=instruction_set,
    ) as step:
        return step.attend(inputs.q, inputs.k, inputs.v, pool), pool


def defined(inputs: Inputs) -> tuple[Tensor, Tensor]:
    t = inputs.tables
    return legolink_attention(
        *(inputs.q, inputs.k, inputs.v, inputs.pool, t.positions, t.key_positions),
        *(t.slots, t.query_start, t.pages, t.inv_freq, t.scale),
    )


def check(
    calls: NativeCalls,
    inputs: Inputs,
    instruction_set: InstructionSet = InstructionSet.BEST,
    num_threads: int = 2,
) -> None:
    """Output and pool equal the definition's; what no slot names stays as it was, NaNs too."""
    out, pool = native(calls, inputs, instruction_set, num_threads)
    expected, expected_pool = defined(inputs)
    dtype = inputs.q.dtype
    tolerance = TOLERANCE[dtype]
    if dtype == torch.bfloat16 and (not instruction_set or instruction_set.bfloat16_only):
        tolerance = PAIRS_TOLERANCE
    torch.testing.assert_close(out.float(), expected.float(), atol=tolerance, rtol=0)
    torch.testing.assert_close(
        pool, expected_pool, atol=KEY_TOLERANCE[dtype], rtol=0, equal_nan=True
    )
    assert torch.equal(pool[:, 1].nan_to_num(), expected_pool[:, 1].nan_to_num())


def float_sets(calls: NativeCalls) -> list[InstructionSet]:
    return [each for each in calls.instruction_sets() if not each.bfloat16_only]


def skip_if_missing(calls: NativeCalls, instruction_set: InstructionSet) -> None:
    if instruction_set not in calls.instruction_sets():
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
def test_each_instruction_set_equals_the_definition(calls, instruction_set, dtype, num_threads):
    skip_if_missing(calls, instruction_set)
    check(calls, make_inputs(Step(RAGGED, dtype=dtype)), instruction_set, num_threads)


@pytest.mark.parametrize("head_size", [16, 48, 64, 80, 96, 112, 128, 256])
@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
def test_any_multiple_of_16_is_a_head_size(calls, instruction_set, dtype, head_size):
    skip_if_missing(calls, instruction_set)
    step = Step(RAGGED, heads=(6, 2), head_size=head_size, dtype=dtype, seed=head_size)
    check(calls, make_inputs(step), instruction_set)


@pytest.mark.parametrize("page_size", [4, 5, 16, 32, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_page_size_will_do(calls, page_size, dtype):
    check(calls, make_inputs(Step(RAGGED, page_size=page_size, dtype=dtype, seed=page_size)))


@pytest.mark.parametrize("heads", [(1, 1), (9, 3), (5, 1), (7, 7), (14, 2), (200, 1)])
def test_any_number_of_query_heads_shares_a_kv_head(calls, heads):
    check(calls, make_inputs(Step(RAGGED, heads=heads, seed=heads[0])))


@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
@pytest.mark.parametrize(
    "sequence",
    [
        whole_chunk(300),
        linked((150, 130, 140), link_tokens=16, fresh=9),
        linked((150, 65), link_tokens=0, fresh=1),
        decoded(257),
        Sequence((300,), tuple(range(200, 300))),
    ],
    ids=["prefill", "link", "link k=0", "decode", "second piece"],
)
def test_long_sequences_equal_the_definition(calls, sequence, dtype, instruction_set):
    skip_if_missing(calls, instruction_set)
    inputs = make_inputs(Step((sequence, decoded(33)), heads=(9, 3), dtype=dtype))
    check(calls, inputs, instruction_set)


@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
def test_keys_cut_into_parts_for_the_threads_give_what_they_give_uncut(
    calls, instruction_set, dtype
):
    skip_if_missing(calls, instruction_set)
    sequences = (decoded(2100), linked((700, 650, 640), link_tokens=0, fresh=7), decoded(40))
    inputs = make_inputs(Step(sequences, heads=(9, 3), dtype=dtype))
    check(calls, inputs, instruction_set, num_threads=2)
    cut, _ = native(calls, inputs, instruction_set, num_threads=2)
    uncut, _ = native(calls, inputs, instruction_set, num_threads=1)
    torch.testing.assert_close(cut, uncut, atol=TOLERANCE[dtype], rtol=0)


def test_a_sequence_gives_the_same_bits_in_any_company(calls):
    alone = make_inputs(Step((decoded(1500),), heads=(9, 3), seed=5))
    crowd = make_inputs(Step((decoded(1500), *(decoded(30),) * 40), heads=(9, 3), seed=5))
    for name in ("q", "k", "v"):
        getattr(crowd, name)[0] = getattr(alone, name)[0]
    crowd.pool[: len(alone.pool)] = alone.pool
    crowd.tables.pages[0, : alone.tables.pages.shape[1]] = alone.tables.pages[0]
    crowd.tables.slots[0] = alone.tables.slots[0]
    assert torch.equal(native(calls, crowd)[0][0], native(calls, alone)[0][0])


@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
def test_a_row_has_the_same_bits_whatever_rows_are_attended_beside_it(
    calls, instruction_set, dtype
):
    # On one thread the rows of a head are one tile, on eight they are cut: other panels and turns.
    skip_if_missing(calls, instruction_set)
    sequence = linked((330, 200, 90), link_tokens=16, fresh=60)
    inputs = make_inputs(Step((sequence,), heads=(9, 3), dtype=dtype))
    # Keys of ever larger scores, so that a row's maximum is raised again and again.
    inputs.pool[:, 0] *= torch.linspace(0.1, 6, len(inputs.pool))[:, None, None, None].to(dtype)
    together, _ = native(calls, inputs, instruction_set, num_threads=1)
    apart, _ = native(calls, inputs, instruction_set, num_threads=8)
    assert torch.equal(together, apart)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_ragged_batches_equal_the_definition(calls, seed, dtype):
    positions, slots, query_start, pages = random_batch(seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    inv_freq = torch.logspace(0, -4, 16, dtype=torch.float32)
    count = len(positions)
    inputs = Inputs(
        q=normal(count, 4, 32),
        k=normal(count, 2, 32),
        v=normal(count, 2, 32),
        pool=normal(64, 2, RAGGED_PAGE_SIZE, 2, 32),
        tables=AttentionTables(
            positions, positions, slots, query_start, pages, inv_freq, 1 / math.sqrt(32)
        ),
    )
    check(calls, inputs)


def test_scores_of_any_size_give_weights_that_sum_to_one(calls):
    inputs = make_inputs(Step((linked((70, 90), 16, 5),), heads=(4, 2)))
    inputs.q.mul_(torch.logspace(-3, 3, len(inputs.q))[:, None, None])
    inputs.v.fill_(1.0)
    inputs.pool[:, 1].masked_fill_(~inputs.pool[:, 1].isnan(), 1.0)
    for instruction_set in float_sets(calls):
        out, _ = native(calls, inputs, instruction_set)
        torch.testing.assert_close(out, torch.ones_like(out), atol=1e-5, rtol=0)
        check(calls, inputs, instruction_set)


def test_a_query_that_is_not_a_number_shows(calls):
    inputs = make_inputs(Step((whole_chunk(20),)))
    inputs.q[7, 1, 3] = torch.nan
    for instruction_set in float_sets(calls):
        out, _ = native(calls, inputs, instruction_set)
        nan = out.isnan().any(-1).nonzero().tolist()
        assert nan == [[7, 1]]


def test_tokens_with_no_key_or_no_sequence_give_zeros(calls):
    inputs = make_inputs(Step((whole_chunk(5), whole_chunk(4))))
    pages = inputs.tables.pages.clone()
    pages[1, :, 3] = 0
    query_start = inputs.tables.query_start.clone()
    query_start[2] -= 1
    tables = dataclasses.replace(inputs.tables, pages=pages, query_start=query_start)
    out, _ = native(calls, dataclasses.replace(inputs, tables=tables))
    assert torch.equal(out[5:], torch.zeros_like(out[5:]))
    assert out[:5].any(-1).all()


def test_a_step_of_no_tokens_changes_nothing(calls):
    inputs = make_inputs(Step((Sequence((), ()),)))
    out, pool = native(calls, inputs)
    assert len(out) == 0
    assert torch.equal(pool.isnan(), inputs.pool.isnan())


def test_parts_of_one_wider_tensor_are_read_where_they_lie(calls):
    inputs = make_inputs(Step(RAGGED, heads=(6, 2)))
    wide = torch.cat((inputs.q, inputs.k, inputs.v), 1)
    q, k, v = wide.split((6, 2, 2), 1)
    out, _ = native(calls, dataclasses.replace(inputs, q=q, k=k, v=v))
    assert torch.equal(out, native(calls, inputs)[0])


def test_a_slot_outside_the_pool_is_not_written(calls):
    inputs = make_inputs(Step((decoded(20),)))
    past = torch.tensor([inputs.pool.shape[0] * 16], dtype=torch.int32)
    tables = dataclasses.replace(inputs.tables, slots=past)
    _, pool = native(calls, dataclasses.replace(inputs, tables=tables))
    assert torch.equal(pool.nan_to_num(), inputs.pool.nan_to_num())


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        (
            "pages",
            lambda x: x[0, :, 0].add_(1000),
            "a table row has page 10.. with .* the pool has",
        ),
        ("pages", lambda x: x[0, :, 3].add_(17), "filled slots, the pool has 4 pages of 16"),
        (
            "pages",
            lambda x: x[0, :, 1].fill_(-(2**31)),
            "base -2147483648 and begins at position 0",
        ),
        (
            "pages",
            lambda x: x[0, :, 2].fill_(-(2**31)),
            "base 0 and begins at position -2147483648",
        ),
        (
            "pages",
            lambda x: x[0, :, 2].fill_(2**30 + 1),
            "position 1073741825, they end at 1073741824",
        ),
        ("positions", lambda x: x[-1].fill_(2**31 - 1), "positions 0 to 2147483647, they end at"),
        ("positions", lambda x: x.neg_(), "positions go from 0 to -1 at token 1 of sequence 0"),
        ("query_start", lambda x: x.add_(1), "query_start begins with 1, not 0"),
        ("query_start", lambda x: x[1:].add_(1), "query_start goes from 0 to 21 at sequence 0"),
    ],
)
def test_tables_that_make_no_sense_are_refused_with_the_numbers(calls, field, change, message):
    inputs = make_inputs(Step((whole_chunk(20),)))
    change(getattr(inputs.tables, field))
    before = inputs.pool.clone()
    with pytest.raises(LaunchRefused, match=message):
        native(calls, inputs)
    assert torch.equal(inputs.pool.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_size": 24}, "head size 24 is not a multiple of 16"),
        ({"num_heads": 5}, "5 query heads cannot share 2 KV heads evenly"),
    ],
)
def test_a_shape_without_a_kernel_is_refused(calls, change, message):
    inputs = make_inputs(Step((whole_chunk(3),)))
    shape = dataclasses.replace(shape_of(inputs), **change)
    with (
        pytest.raises(LaunchRefused, match=message),
        calls.step(inputs.tables, shape, num_threads=1),
    ):
        pass


def test_an_instruction_set_that_cannot_do_the_dtype_is_refused(calls):
    inputs = make_inputs(Step((whole_chunk(3),)))
    with pytest.raises(LaunchRefused, match="no avx512_bf16 kernels for dtype 0"):
        native(calls, inputs, InstructionSet.AVX512_BF16)


def test_tensors_of_another_layout_than_the_step_s_are_refused(calls):
    inputs = make_inputs(Step((whole_chunk(3),)))
    with calls.step(inputs.tables, shape_of(inputs), num_threads=1) as step:
        q, k, v, pool = inputs.q, inputs.k, inputs.v, inputs.pool
        for wrong in (
            (q[:2], k, v, pool),
            (q, k.double(), v, pool),
            (q, k, v.transpose(0, 1).contiguous().transpose(0, 1), pool),
            (q, k, v, pool.transpose(2, 3)),
        ):
            with pytest.raises(LaunchRefused):
                step.attend(*wrong)


@pytest.mark.parametrize("pool_dtype", list(TOLERANCE))
@pytest.mark.parametrize("block_dtype", list(TOLERANCE))
def test_an_import_equals_the_definition(calls, pool_dtype, block_dtype):
    dice = np.random.default_rng(3)
    pool = torch.from_numpy(dice.normal(size=(7, 2, 4, 2, 16))).to(pool_dtype)
    block = torch.from_numpy(dice.normal(size=(3, 2, 4, 2, 16))).to(block_dtype)
    pages = torch.tensor([5, 0, 3], dtype=torch.int32)
    expected = kv_import(pool, block, pages)
    calls.kv_import(pool, block, pages, num_threads=2)
    assert torch.equal(pool, expected)
    calls.kv_import(pool, block[:0], pages[:0], num_threads=2)
    assert torch.equal(pool, expected)


@pytest.mark.parametrize("num_tokens", [1, 8, 11])
@pytest.mark.parametrize("pool_dtype", list(TOLERANCE))
@pytest.mark.parametrize("kv_dtype", list(TOLERANCE))
def test_stored_kv_goes_to_the_pages_of_all_layers_at_once(calls, pool_dtype, kv_dtype, num_tokens):
    dice = np.random.default_rng(4)
    pools = torch.from_numpy(dice.normal(size=(3, 7, 2, 4, 2, 16))).to(pool_dtype)
    kv = torch.from_numpy(dice.normal(size=(3, 2, num_tokens, 2, 16))).to(kv_dtype)
    pages = torch.tensor([5, 0, 3][: -(-num_tokens // 4)], dtype=torch.int32)
    expected = pools.clone()
    for token in range(len(pages) * 4):
        page, slot = pages[token // 4], token % 4
        stored = kv[:, :, token].to(pool_dtype) if token < num_tokens else 0
        expected[:, page, :, slot] = stored
    by_torch = pools.clone()
    import_stored(by_torch, kv, pages)
    calls.import_kv(pools, kv, pages, num_threads=2)
    assert torch.equal(pools, expected)
    assert torch.equal(by_torch, expected)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_pages_are_copied_in_all_layers_at_once_and_no_others_change(calls, dtype):
    dice = np.random.default_rng(5)
    pools = torch.from_numpy(dice.normal(size=(3, 7, 2, 4, 2, 16))).to(dtype)
    sources, targets = (torch.tensor(pages, dtype=torch.int32) for pages in ([5, 0, 5], [2, 6, 1]))
    expected = pools.clone()
    for layer in range(3):
        for source, target in ((5, 2), (0, 6), (5, 1)):
            expected[layer, target] = pools[layer, source]
    by_torch = pools.clone()
    copy_pages(by_torch, sources, targets)
    assert torch.equal(by_torch, expected)
    calls.copy_pages(pools, sources, targets)
    assert torch.equal(pools, expected)
    calls.copy_pages(pools, sources[:0], targets[:0])
    assert torch.equal(pools, expected)


@pytest.mark.parametrize(
    ("sources", "targets", "reason"),
    [
        ([7], [0], "copy_pages: page 7, the pool has 7"),
        ([0], [-1], "copy_pages: page -1, the pool has 7"),
        ([0, 1], [2], "2 pages cannot be copied to 1"),
    ],
)
def test_pages_outside_the_pool_are_not_copied(calls, sources, targets, reason):
    pools = torch.ones(2, 7, 2, 4, 2, 16)
    with pytest.raises(LaunchRefused, match=reason):
        calls.copy_pages(pools, *(torch.tensor(p, dtype=torch.int32) for p in (sources, targets)))
    with pytest.raises(LaunchRefused, match=r"sources must be contiguous torch\.int32"):
        calls.copy_pages(pools, torch.tensor([0]), torch.tensor([1], dtype=torch.int32))


def test_a_step_that_memory_is_too_short_for_is_no_fault_of_the_request(
    calls: NativeCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = (ROOT / "plugins" / "cpu" / "launch.cpp").read_text()
    caught = launch[launch.index("std::bad_alloc") :]
    assert caught[: caught.index(";")].count(f'"{NO_MEMORY} for a step of %d tokens"') == 1
    monkeypatch.setattr(calls.library.functions, "legokv_cpu_begin", lambda step: None)
    monkeypatch.setattr(calls.library, "_last_error", lambda: f"{NO_MEMORY} for a step of 5 tokens")
    with pytest.raises(
        OutOfMemory, match="no memory left for a step of 5 tokens: ask again"
    ) as end:
        native(calls, make_inputs(Step((whole_chunk(5),))))
    assert end.value.code == "UNAVAILABLE"

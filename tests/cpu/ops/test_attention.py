"""The op's definition against plain attention, and the form that runs against the definition."""

import math

import pytest
import torch
from ragged_batches import PAGE_SIZE, random_batch

from legokv.ops.attention_tiles import step_tables
from legokv.ops.kv_import import kv_import
from legokv.ops.legolink_attention import legolink_attention
from legokv.ops.paged_attention import attend_in_place
from legokv.ops.rotary import cos_sin, rotate

D, S = 8, PAGE_SIZE
INV_FREQ = torch.tensor([1.0, 0.3, 0.1, 0.01])
SCALE = 1 / math.sqrt(D)
# Sums of a few dozen float32 products in another order.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def heads(random, num_tokens, num_heads):
    return torch.randn(num_tokens, num_heads, D, generator=random)


def full_attention(q, k, v, positions):
    """Causal attention in float64, all rotated by absolute position, one head at a time."""
    q, k = (rotate(x, *cos_sin(positions[:, None], INV_FREQ)).double() for x in (q, k))
    out = torch.zeros_like(q)
    for h in range(q.shape[1]):
        g = h // (q.shape[1] // k.shape[1])
        scores = SCALE * q[:, h] @ k[:, g].T
        scores[positions[:, None] < positions] = -math.inf
        out[:, h] = scores.softmax(-1) @ v[:, g].double()
    return out.float()


def linked_case():
    """Two chunks of 6 and 5 tokens stored alone, linked behind each other, 3 tokens after them."""
    random = torch.Generator().manual_seed(1)
    q, k, v = heads(random, 14, 4), heads(random, 14, 2), heads(random, 14, 2)
    pool = torch.full((8, 2, S, 2, D), 99.0)
    empty = heads(random, 0, 4), int32([0, 0]), torch.zeros(1, 0, 4, dtype=torch.int32)
    for start, length, page in ((0, 6, 1), (6, 5, 4)):
        local = torch.arange(length, dtype=torch.int32)
        chunk = slice(start, start + length)
        _, pool = legolink_attention(
            *(empty[0], k[chunk], v[chunk], pool),
            *(local[:0], local, local + page * S, empty[1], empty[2], INV_FREQ, SCALE),
        )
    table = [[1, 0, 0, 4], [2, 0, 4, 2], [0, 0, 0, 0], [4, 6, 6, 4], [5, 6, 10, 1], [7, 0, 11, 3]]
    return q, k, v, pool, int32([table])


def test_linked_chunks_at_any_base_attend_as_if_computed_in_place():
    q, k, v, pool, table = linked_case()
    positions = torch.arange(11, 14, dtype=torch.int32)
    out, _ = legolink_attention(
        *(q[11:], k[11:], v[11:], pool, positions, positions),
        *(int32([28, 29, 30]), int32([0, 3]), table, INV_FREQ, SCALE),
    )
    expected = full_attention(q, k, v, torch.arange(14))[11:]
    torch.testing.assert_close(out, expected, **CLOSE)


def test_the_op_leaves_its_input_pool_alone_and_writes_only_its_slots():
    q, k, v, pool, table = linked_case()
    before = pool.clone()
    positions = int32([11, 12])
    _, after = legolink_attention(
        *(q[:2], k[:2], v[:2], pool, positions, positions),
        *(int32([28, -1]), int32([0, 2]), table, INV_FREQ, SCALE),
    )
    assert torch.equal(pool, before)
    changed = (after != before).flatten(2).any(-1).any(1).nonzero().flatten().tolist()
    assert changed == [7]
    assert torch.equal(after[7, 1, 0], v[0])
    assert torch.equal(after[7, :, 1:], before[7, :, 1:])


def test_a_token_that_sees_no_key_gives_zeros():
    q, k, v, pool, _ = linked_case()
    table = int32([[[1, 5, 5, 4]]])
    out, _ = legolink_attention(
        *(q[:1], k[:1], v[:1], pool, int32([4]), int32([4])),
        *(int32([-1]), int32([0, 1]), table, INV_FREQ, SCALE),
    )
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_form_that_runs_equals_the_definition_on_ragged_batches(seed, dtype):
    positions, slots, query_start, pages = random_batch(seed)
    random = torch.Generator().manual_seed(seed)
    count = len(positions)
    q, k, v = (heads(random, count, n).to(dtype) for n in (4, 2, 2))
    pool = torch.randn(64, 2, S, 2, D, generator=random).to(dtype)
    out, pool_after = legolink_attention(
        q, k, v, pool, positions, positions, slots, query_start, pages, INV_FREQ, SCALE
    )
    tables = step_tables(
        positions, positions, slots, query_start, pages, INV_FREQ, page_size=S, dtype=dtype
    )
    out_in_place = attend_in_place(q, k, v, pool, tables, SCALE)
    # bfloat16: queries and turned keys are rounded once more than in the definition, to 8 bits.
    tolerance = CLOSE if dtype == torch.float32 else {"atol": 4e-2, "rtol": 4e-2}
    torch.testing.assert_close(out_in_place, out, **tolerance)
    assert torch.equal(pool, pool_after)


def test_an_import_replaces_the_named_pages_and_converts_their_type():
    pool = torch.zeros(5, 2, S, 2, D, dtype=torch.bfloat16)
    block = torch.randn(2, 2, S, 2, D, generator=torch.Generator().manual_seed(2))
    after = kv_import(pool, block, int32([3, 1]))
    assert torch.equal(after[3], block[0].bfloat16())
    assert torch.equal(after[1], block[1].bfloat16())
    assert torch.equal(pool, torch.zeros_like(pool))
    assert not after[[0, 2, 4]].any()


def test_an_import_of_no_pages_changes_nothing():
    pool = torch.randn(5, 2, S, 2, D)
    assert torch.equal(kv_import(pool, pool[:0], int32([])), pool)


def test_both_ops_pass_torch_s_own_checks():
    q, k, v, pool, table = linked_case()
    positions = int32([11, 12, 13])
    arguments = (q[11:], k[11:], v[11:], pool, positions, positions, int32([28, 29, 30]))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        legolink_attention, (*arguments, int32([0, 3]), table, INV_FREQ, SCALE), test_utils=tests
    )
    torch.library.opcheck(kv_import, (pool, pool[:2].clone(), int32([0, 3])), test_utils=tests)

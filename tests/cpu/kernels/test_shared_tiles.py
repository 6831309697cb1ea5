"""Pages that several sequences see are attended to by tiles of their rows: the list and the kernel,
by its host form, against float64 loops and against no list."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_cases import NOWHERE, Inputs, expected_out
from guarded import Guarded
from paths import ROOT
from shared_cases import Asked, Sizes, asking, inputs_of
from torch import Tensor

from legokv.errors import LaunchRefused
from legokv.kernels.build_gpu import PluginBuild, build_host_kernels
from legokv.kernels.gpu import (
    INDEX_TABLES,
    AttentionTables,
    Launchers,
    Regime,
    Room,
    SharedTables,
    attention_arguments,
)

# As in test_kernels_on_host.
TENSOR_CORE_TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 2.5e-2}
SIZES = Sizes()
# In shuffled orders: one twice over a chunk, one with three tokens, one whose first of four tokens
# stands within a chunk, and two with more tokens than share, one of them without chunks.
ORDERS: tuple[Asked, ...] = (
    ((0, 1, 2), 5, 1),
    ((2, 1, 0, 3), 21, 1),
    ((1,), 1, 1),
    ((3, 0, 1), 40, 3),
    ((0, 0, 2), 17, 1),
    ((2, 0), 2, 4),
    ((1, 2), 30, 18),
    ((), 9, 9),
)
ROOM = Room(tiles=40, members=300, pages=90)


@pytest.fixture(scope="module")
def launchers() -> Launchers:
    folder = build_host_kernels(PluginBuild(ROOT / "out"), print)
    return Launchers(folder / "liblegokv_host_kernels.so")


def sharing(launchers: Launchers, inputs: Inputs, room: Room | None = None) -> Inputs:
    """The same step with what its sequences have in common listed; it has something."""
    index = {name: getattr(inputs.tables, name) for name in INDEX_TABLES}
    found = launchers.list_shared(index, inputs.q.shape[1], inputs.pool, room)
    assert found is not None
    return replace(inputs, tables=replace(inputs.tables, pages=found[0], shared=found[1]))


def run(
    launchers: Launchers, inputs: Inputs, regime: Regime = Regime.AUTO, num_splits: int = 0
) -> tuple[Tensor, Tensor]:
    """Output and pool; output and workspace start as NaNs between guards."""
    pool = inputs.pool.clone()
    arguments = attention_arguments(inputs.q, inputs.k, inputs.v, pool, inputs.tables)
    arguments.regime, arguments.num_splits = regime, num_splits
    out = Guarded(inputs.q.shape, inputs.q.dtype, torch.device("cpu"))
    size = launchers.workspace_bytes(arguments) // 4
    workspace = Guarded((size,), torch.float32, torch.device("cpu"))
    launchers.legolink_attention(arguments, out.inner, workspace.inner)
    out.check("the output")
    workspace.check("the workspace")
    return out.inner, pool


def attended(launchers: Launchers, inputs: Inputs, **how) -> Tensor:
    return run(launchers, inputs, **how)[0]


def check(launchers: Launchers, sizes: Sizes, dtype: torch.dtype, orders=ORDERS, **how) -> None:
    """Of the loops, and as without the list, in either case to what 16 bits keep."""
    inputs = inputs_of(asking(orders, sizes), sizes, dtype)
    out, pool = run(launchers, sharing(launchers, inputs), **how)
    allowed = TENSOR_CORE_TOLERANCE[dtype]
    meant = expected_out(inputs, pool)
    torch.testing.assert_close(out.double(), meant, rtol=0, atol=allowed)
    plain = attended(launchers, inputs)
    torch.testing.assert_close(out.float(), plain.float(), rtol=0, atol=allowed)


HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@HALVES
@pytest.mark.parametrize("head_size", [64, 80, 96, 128])
def test_rows_over_shared_chunks_are_those_of_the_loops(launchers, head_size, dtype):
    check(launchers, replace(SIZES, head_size=head_size), dtype)


@pytest.mark.parametrize("page_size", [32, 64])
def test_shared_pages_of_every_size_are_walked(launchers, page_size):
    sizes = replace(SIZES, page_size=page_size, num_pages=200)
    check(launchers, sizes, torch.bfloat16)


# Of one row a token to as many as still are few; tiles of 128, 64, 42, 18 and 8 tokens.
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (9, 3), (7, 1), (15, 1)], ids=str)
def test_any_number_of_heads_shares_a_kv_head_of_a_shared_tile(launchers, heads):
    orders = ORDERS[:6] * (1 if heads[1] > 1 else 3)
    check(launchers, replace(SIZES, heads=heads), torch.float16, orders)


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("regime", [Regime.SPLIT, Regime.MIXED], ids=str)
def test_what_is_left_alone_may_be_split_or_not(launchers, regime, num_splits):
    check(launchers, SIZES, torch.bfloat16, regime=regime, num_splits=num_splits)


# Parts of long chunks, and tokens of more tiles than one.
def test_long_chunks_are_read_in_parts_by_several_tiles(launchers):
    sizes = replace(SIZES, heads=(8, 1), chunks=(1100, 40), num_pages=400)
    orders = [((0, 1), 3, 1), ((1, 0), 9, 1)] * 10
    inputs = inputs_of(asking(orders, sizes, link_tokens=0), sizes, torch.bfloat16)
    shared = sharing(launchers, inputs).tables.shared
    assert shared is not None
    pages = {tuple(tile[:2]) for tile in shared.tiles.tolist()}
    assert len(shared.tiles) == 2 * len(pages) == 2 * 3
    out, plain = attended(launchers, sharing(launchers, inputs)), attended(launchers, inputs)
    allowed = TENSOR_CORE_TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(out, plain, rtol=0, atol=allowed)


def seen_by(tables: AttentionTables, page_size: int) -> list[list[tuple[int, int, int]]]:
    """Of each token the keys that it sees, as (slot in the pool, base, times), in order."""
    starts, seen = tables.query_start.tolist(), [[] for _ in tables.positions]
    for b, rows in enumerate(tables.pages.tolist()):
        for t in range(starts[b], starts[b + 1]):
            position = int(tables.positions[t])
            for page, base, first, filled in rows:
                count = min(filled, page_size, position - first + 1)
                seen[t] += [(page * page_size + slot, base) for slot in range(count)]
    for first_page, pages, first_member, members in _tiles(tables.shared):
        for token, base, place, _ in tables.shared.members[first_member:][:members].tolist():
            assert tables.shared.start[token] <= place < tables.shared.start[token + 1]
            for page, _, _, filled in tables.shared.pages[first_page:][:pages].tolist():
                seen[token] += [(page * page_size + slot, base) for slot in range(filled)]
    return [sorted(keys) for keys in seen]


def _tiles(shared: SharedTables | None) -> list[list[int]]:
    return [] if shared is None else [tile for tile in shared.tiles.tolist() if tile[3] > 0]


@pytest.mark.parametrize("link_tokens", [0, 16, 24, 70])
@pytest.mark.parametrize("room", [None, ROOM, Room(3, 12, 40)], ids=["found", "ample", "little"])
def test_each_token_sees_every_key_once_alone_or_in_a_shared_tile(launchers, room, link_tokens):
    inputs = inputs_of(asking(ORDERS, SIZES, link_tokens=link_tokens), SIZES, torch.bfloat16)
    shared = sharing(launchers, inputs, room).tables
    assert seen_by(shared, 16) == seen_by(inputs.tables, 16)
    places = [row[2] for row in shared.shared.members.tolist() if row[2] >= 0]
    assert sorted(places) == list(range(len(places)))
    assert int(shared.shared.start[-1]) == len(places)
    assert all(tile[3] <= 128 // 3 for tile in shared.shared.tiles.tolist())


def test_what_the_lists_have_no_room_for_is_read_alone_and_unused_entries_are_of_nothing(launchers):
    inputs = inputs_of(asking(ORDERS, SIZES), SIZES, torch.float16)
    all_of_it = sharing(launchers, inputs).tables.shared
    some = sharing(launchers, inputs, Room(3, 12, 40)).tables.shared
    assert 0 < len(_tiles(some)) < len(_tiles(all_of_it))
    ample = sharing(launchers, inputs, ROOM)
    shared = ample.tables.shared
    assert [len(each) for each in (shared.tiles, shared.members, shared.pages)] == [40, 300, 90]
    for ours, found in (
        (shared.tiles, all_of_it.tiles),
        (shared.members, all_of_it.members),
        (shared.pages, all_of_it.pages),
    ):
        assert torch.equal(ours[: len(found)], found)
        assert (ours[len(found) :] == -1).all()
    found = sharing(launchers, inputs)
    ours, theirs = (attended(launchers, each, num_splits=2) for each in (ample, found))
    assert torch.equal(ours, theirs)


def test_where_nothing_is_shared_a_graph_s_lists_are_of_nothing_and_tables_have_all(launchers):
    """Lists of a captured graph's sizes: those of the step before would stay in their place."""
    inputs = inputs_of(asking([((0,), 5, 1), ((1,), 9, 2)], SIZES), SIZES, torch.bfloat16)
    found = sharing(launchers, inputs, ROOM)
    shared = found.tables.shared
    assert [len(each) for each in (shared.tiles, shared.members, shared.pages)] == [40, 300, 90]
    assert all((each == -1).all() for each in (shared.tiles, shared.members, shared.pages))
    assert not shared.start.any()
    assert torch.equal(found.tables.pages, inputs.tables.pages)
    ours, theirs = (attended(launchers, each, num_splits=2) for each in (found, inputs))
    assert torch.equal(ours, theirs)


def test_tables_filled_up_and_in_any_order_share_the_same(launchers):
    inputs = inputs_of(asking(ORDERS, SIZES), SIZES, torch.bfloat16)
    pages = inputs.tables.pages
    shuffle = torch.randperm(pages.shape[1], generator=torch.Generator().manual_seed(4))
    empty = torch.tensor([NOWHERE, 9, 3, 0], dtype=torch.int32).expand(len(pages), 11, 4)
    padded = torch.cat([pages[:, shuffle], empty], 1).contiguous()
    wider = replace(inputs, tables=replace(inputs.tables, pages=padded))
    found = sharing(launchers, wider)
    assert seen_by(found.tables, 16) == seen_by(inputs.tables, 16)
    allowed = TENSOR_CORE_TOLERANCE[torch.bfloat16]
    out = attended(launchers, found)
    torch.testing.assert_close(out, attended(launchers, inputs), rtol=0, atol=allowed)


@pytest.mark.parametrize("who", range(3))
def test_who_sees_less_of_a_page_than_others_reads_it_alone_also_the_first(launchers, who):
    inputs = inputs_of(asking([((0, 1), 5, 1)] * 3, SIZES), SIZES, torch.float16)
    pages, shared = inputs.tables.pages, sharing(launchers, inputs).tables.shared.pages[:, 0]
    (row,) = torch.nonzero(pages[who, :, 0] == shared[0])
    pages[who, row, 3] = 9
    listed = sharing(launchers, inputs)
    assert seen_by(listed.tables, 16) == seen_by(inputs.tables, 16)
    out, pool = run(launchers, listed)
    torch.testing.assert_close(out.double(), expected_out(inputs, pool), rtol=0, atol=3e-3)


def read(launchers: Launchers, inputs: Inputs) -> int:
    """Keys that each KV head brought from the pool."""
    launchers.library.legokv_host_take_num_copies.restype = ctypes.c_int64
    launchers.library.legokv_host_take_num_copies()
    attended(launchers, inputs)
    num_kv_heads, size = inputs.pool.shape[3:]
    copies = int(launchers.library.legokv_host_take_num_copies())
    return copies // (num_kv_heads * 2 * size * 2 // 16)


def askers(count: int) -> list[Asked]:
    """Over the same chunks in orders of their own, and a question each."""
    random = np.random.default_rng(3)
    return [(tuple(random.permutation(3).tolist()), 8, 1) for _ in range(count)]


@pytest.mark.parametrize("count", [6, 42, 60])
def test_a_chunk_is_read_once_for_each_tile_of_rows_that_see_it(launchers, count):
    inputs = inputs_of(asking(askers(count), SIZES), SIZES, torch.bfloat16)
    apart = read(launchers, inputs)
    together = read(launchers, sharing(launchers, inputs))
    assert apart == int(inputs.tables.pages[..., 3].sum())
    tiles = -(-count // 42)
    # Its recomputed pages but for the first chunk's, and the question; the others' first pages are
    # shared by those who have them first.
    own = 2 * 16 + 8
    assert together <= tiles * sum(SIZES.chunks[:3]) + count * own + 3 * 16 * tiles
    assert together >= tiles * (sum(SIZES.chunks[:3]) - 3 * 16)


def test_sequences_without_chunks_in_common_share_nothing(launchers):
    for orders in (
        [((0,), 5, 1), ((1,), 9, 2), ((2, 3), 6, 1)],
        [((0, 1), 5, 1)],
        [((), 3, 3)] * 2,
    ):
        inputs = inputs_of(asking(orders, SIZES), SIZES, torch.bfloat16)
        index = {name: getattr(inputs.tables, name) for name in INDEX_TABLES}
        assert launchers.list_shared(index, 6, inputs.pool) is None


def test_what_saves_less_than_its_results_cost_is_not_shared(launchers):
    """Two askers of three rows a KV head: 25 keys and more are worth it at head size 64."""
    for tokens, shared in ((24, False), (25, True)):
        sizes = replace(SIZES, chunks=(tokens,))
        inputs = inputs_of(asking([((0,), 5, 1)] * 2, sizes), sizes, torch.bfloat16)
        index = {name: getattr(inputs.tables, name) for name in INDEX_TABLES}
        assert (launchers.list_shared(index, 6, inputs.pool) is not None) == shared


def test_a_sequence_of_many_rows_keeps_its_own_tiles_beside_shared_ones(launchers):
    inputs = inputs_of(asking(ORDERS, SIZES), SIZES, torch.bfloat16)
    plain = attended(launchers, inputs, num_splits=2)
    out = attended(launchers, sharing(launchers, inputs), num_splits=2)
    starts = inputs.tables.query_start.tolist()
    assert torch.equal(out[starts[6] : starts[8]], plain[starts[6] : starts[8]])
    assert not torch.equal(out[: starts[6]], plain[: starts[6]])


def test_keys_of_one_that_are_no_numbers_spoil_no_neighbour(launchers):
    inputs = inputs_of(asking([((1, 0), 8, 1)] * 5, SIZES), SIZES, torch.bfloat16)
    clean = attended(launchers, sharing(launchers, inputs))
    table = inputs.tables.pages[2]
    own = table[(table[:, 1] > 0) & (table[:, 2] == table[:, 1])][0, 0]
    inputs.pool[own] = torch.nan
    out = attended(launchers, sharing(launchers, inputs))
    assert out[2].isnan().all()
    others = [n for n in range(5) if n != 2]
    assert torch.equal(out[others], clean[others])


def test_no_order_of_a_block_s_threads_changes_shared_rows(launchers):
    inputs = sharing(launchers, inputs_of(asking(ORDERS[:6], SIZES), SIZES, torch.bfloat16))
    results = []
    for order in (0, 1, 2):
        launchers.library.legokv_host_set_order(order)
        results.append(attended(launchers, inputs))
    launchers.library.legokv_host_set_order(0)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Small numbers around every bound, and such as no list has.
NUMBERS = [-(1 << 31), -(1 << 30), -7, -1, *range(8), 39, 40, 41, 90, 300, 1 << 20, (1 << 31) - 1]


@pytest.mark.parametrize("seed", range(8))
def test_nothing_outside_the_tensors_is_touched_whatever_the_lists_say(launchers, seed):
    """The host form would die of an address outside; guards and the pool show what was written."""
    inputs = sharing(launchers, inputs_of(asking(ORDERS, SIZES), SIZES, torch.bfloat16), ROOM)
    random = np.random.default_rng(seed)
    shared = inputs.tables.shared
    for each in (shared.tiles, shared.members, shared.pages, shared.start):
        flat = each.view(-1)
        which = torch.from_numpy(random.random(len(flat)) < random.choice([0.1, 0.9]))
        drawn = torch.from_numpy(random.choice(NUMBERS, len(flat)).astype(np.int32))
        flat[which] = drawn[which]
    attended(launchers, inputs)


def test_lists_that_no_kernel_can_follow_are_refused(launchers):
    inputs = sharing(launchers, inputs_of(asking(ORDERS, SIZES), SIZES, torch.float16))
    for change, message in (
        ({"dtype": 0}, "regime 0 with dtype 0 and 3 query heads a KV head shares no tiles"),
        ({"regime": Regime.TILED}, "regime 3 with dtype 1"),
        ({"regime": Regime.REFERENCE}, "regime 1 with dtype 1"),
        ({"num_heads": 32}, "16 query heads a KV head shares no tiles"),
        ({"num_shared_members": -1}, r"a negative count: \d+ shared tiles, -1 members, \d+ pages"),
        ({"num_shared_members": 1 << 30}, "1073741824 members of shared tiles over "),
    ):
        arguments = attention_arguments(inputs.q, inputs.k, inputs.v, inputs.pool, inputs.tables)
        for name, value in change.items():
            setattr(arguments, name, value)
        with pytest.raises(LaunchRefused, match=message):
            launchers.workspace_bytes(arguments)
    for name in ("shared_tiles", "shared_members", "shared_pages", "shared_start"):
        for wrong in (None, 8):
            if name == "shared_start" and wrong:
                continue
            arguments = attention_arguments(
                inputs.q, inputs.k, inputs.v, inputs.pool, inputs.tables
            )
            setattr(arguments, name, wrong and getattr(arguments, name) + wrong)
            workspace = torch.empty(launchers.workspace_bytes(arguments), dtype=torch.uint8)
            with pytest.raises(LaunchRefused, match="shared tiles without lists of tiles, members"):
                launchers.legolink_attention(arguments, torch.empty_like(inputs.q), workspace)


def test_a_scored_step_with_shared_tiles_is_refused_for_their_keys_would_have_no_mass(launchers):
    inputs = sharing(launchers, inputs_of(asking(ORDERS, SIZES), SIZES, torch.float16))
    arguments = attention_arguments(inputs.q, inputs.k, inputs.v, inputs.pool, inputs.tables)
    words = f"{len(inputs.tables.shared.tiles)} shared tiles, whose keys would have no mass"
    with pytest.raises(LaunchRefused, match=words):
        launchers.scored_workspace_bytes(arguments)
    num_sequences, num_rows, _ = inputs.tables.pages.shape
    scoring = torch.ones(num_sequences, dtype=torch.int32)
    mass = torch.full((num_sequences, num_rows, 16), 7.0)
    workspace = torch.empty(launchers.workspace_bytes(arguments) + (1 << 20), dtype=torch.uint8)
    with pytest.raises(LaunchRefused, match=words):
        launchers.scored_attention(
            arguments, torch.empty_like(inputs.q), (scoring, mass), workspace
        )
    assert (mass == 7.0).all()


def test_a_step_that_cannot_be_listed_is_refused_with_the_numbers(launchers):
    inputs = inputs_of(asking(ORDERS, SIZES), SIZES, torch.float16)
    index = {name: getattr(inputs.tables, name) for name in INDEX_TABLES}
    with pytest.raises(
        LaunchRefused, match="7 query heads, 2 KV heads, head size 64, page size 16"
    ):
        launchers.list_shared(index, 7, inputs.pool)
    with pytest.raises(LaunchRefused, match="room for -1 tiles, 2 members, 3 pages"):
        launchers.list_shared(index, 6, inputs.pool, Room(-1, 2, 3))
    for room in (Room(2, 0, 3), Room(2, 3, 0)):
        with pytest.raises(
            LaunchRefused, match="room for 2 tiles needs some for members and pages"
        ):
            launchers.list_shared(index, 6, inputs.pool, room)

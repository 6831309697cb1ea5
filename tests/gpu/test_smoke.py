"""Every kernel once for each type, on a stream of its own and from a captured graph: what to run
first on a GPU that has never met them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attention_cases import (
    Inputs,
    Step,
    decoded,
    expected_out,
    expected_pool,
    linked,
    make_inputs,
)
from gpu_kernels import KEY_TOLERANCE, Kernels, on_device, tolerance, with_shared_tiles
from shared_cases import Sizes, asking, inputs_of
from torch import Tensor

from legokv.kernels.gpu import INDEX_TABLES, AttentionTables, Regime, Room, attention_arguments

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Long enough for splits, so that they are combined; a link beside a decode.
SEQUENCES = (linked((150, 130), link_tokens=16, fresh=9), decoded(257))
KERNELS = [
    pytest.param(dtype, regime, id=f"{str(dtype).removeprefix('torch.')}-{regime.name.lower()}")
    for dtype in DTYPES
    for regime in Regime
    if dtype != torch.float32 or regime < Regime.TILED
]


def on_a_stream_and_captured(kernels: Kernels, call: Callable[[], None]) -> None:
    """Twice on a stream of its own: as it is, and from a graph. The host form is called once."""
    if kernels.device.type != "cuda":
        call()
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    graph.replay()
    torch.cuda.synchronize()


@pytest.mark.parametrize(("dtype", "regime"), KERNELS)
def test_attention_is_that_of_the_loops(
    kernels: Kernels, seed: int, dtype: torch.dtype, regime: Regime
) -> None:
    inputs = make_inputs(Step(SEQUENCES, heads=(8, 2), head_size=128, dtype=dtype, seed=seed))
    given = on_device(inputs, kernels.device)
    given = replace(given, pool=given.pool.clone())
    arguments = attention_arguments(given.q, given.k, given.v, given.pool, given.tables)
    arguments.regime = regime
    size = kernels.launchers.workspace_bytes(arguments)
    workspace = torch.empty(size, dtype=torch.uint8, device=kernels.device)
    out = torch.full_like(given.q, torch.nan)
    on_a_stream_and_captured(
        kernels,
        lambda: kernels.launchers.legolink_attention(arguments, out, workspace, kernels.stream()),
    )
    pool = given.pool.cpu()
    torch.testing.assert_close(
        pool, expected_pool(inputs), rtol=0, atol=KEY_TOLERANCE[dtype], equal_nan=True
    )
    torch.testing.assert_close(
        out.cpu().double(), expected_out(inputs, pool), rtol=0, atol=tolerance(dtype, regime)
    )


ROOM = Room(tiles=12, members=40, pages=60)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_shared_tiles_are_those_of_the_loops_also_of_lists_that_come_later(
    kernels: Kernels, seed: int, dtype: torch.dtype
) -> None:
    """A captured graph reads whatever lists lie where its own lay."""
    sizes = Sizes(heads=(8, 2), head_size=128)
    orders = [((0, 1), 5, 1), ((1, 0), 9, 1), ((0, 2), 3, 1)]
    steps = [
        inputs_of(asking(made, sizes, seed=seed), sizes, dtype, seed)
        for made in (orders, [*orders[1:], ((1, 2), 7, 1)])
    ]
    width = max(step.tables.pages.shape[1] for step in steps)
    first, second = (
        with_shared_tiles(kernels, replace(step, tables=padded(step.tables, width)), ROOM)
        for step in steps
    )
    arguments = attention_arguments(first.q, first.k, first.v, first.pool, first.tables)
    size = kernels.launchers.workspace_bytes(arguments)
    workspace = torch.empty(size, dtype=torch.uint8, device=kernels.device)
    out = torch.full_like(first.q, torch.nan)

    def call() -> None:
        kernels.launchers.legolink_attention(arguments, out, workspace, kernels.stream())

    replay = captured(kernels, call)
    for given, step in ((first, steps[0]), (second, steps[1])):
        put_into(first, given)
        out.fill_(torch.nan)
        replay()
        torch.testing.assert_close(
            out.cpu().double(),
            expected_out(step, first.pool.cpu()),
            rtol=0,
            atol=tolerance(dtype, Regime.SPLIT),
        )


def padded(tables: AttentionTables, width: int) -> AttentionTables:
    rows = tables.pages.new_zeros((len(tables.pages), width - tables.pages.shape[1], 4))
    return replace(tables, pages=torch.cat([tables.pages, rows], 1))


def captured(kernels: Kernels, call: Callable[[], None]) -> Callable[[], None]:
    """The call's graph; the host form has none and calls again."""
    if kernels.device.type != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def put_into(place: Inputs, inputs: Inputs) -> None:
    """Inputs of the same sizes, where those of `place` lie."""
    for name in ("q", "k", "v", "pool"):
        getattr(place, name).copy_(getattr(inputs, name))
    for name in INDEX_TABLES:
        getattr(place.tables, name).copy_(getattr(inputs.tables, name))
    ours, theirs = place.tables.shared, inputs.tables.shared
    assert ours is not None
    assert theirs is not None
    for name in ("tiles", "members", "pages", "start"):
        getattr(ours, name).copy_(getattr(theirs, name))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stored_kv_goes_to_the_pages_of_all_layers(
    kernels: Kernels, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kv = torch.randn((3, 2, 41, 2, 128), generator=generator).to(dtype)
    pools = torch.full((3, 6, 2, 16, 2, 128), torch.nan, dtype=torch.bfloat16)
    meant = imported(pools, kv, (4, 0, 2))
    pools, source = pools.to(kernels.device), kv.to(kernels.device)
    pages = torch.tensor([4, 0, 2], dtype=torch.int32, device=kernels.device)
    on_a_stream_and_captured(
        kernels, lambda: kernels.launchers.import_kv(pools, source, pages, kernels.stream())
    )
    assert torch.equal(pools.cpu().nan_to_num(7.0), meant.nan_to_num(7.0))


def imported(pools: Tensor, kv: Tensor, pages: tuple[int, ...]) -> Tensor:
    meant = pools.clone()
    meant[:, list(pages)] = 0
    for token in range(kv.shape[2]):
        meant[:, pages[token // 16], :, token % 16] = kv[:, :, token].to(pools.dtype)
    return meant

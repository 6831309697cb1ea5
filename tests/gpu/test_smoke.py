"""Every kernel once for each type, on a stream of its own and from a captured graph: what to run
first on a GPU that has never met them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attention_cases import Step, decoded, expected_out, expected_pool, linked, make_inputs
from gpu_kernels import KEY_TOLERANCE, Kernels, on_device, tolerance
from torch import Tensor

from legokv.kernels.gpu import Regime, attention_arguments

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

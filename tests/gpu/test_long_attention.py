"""Attention at the sizes of real work, against a float64 reference on the device itself."""

from dataclasses import dataclass, replace

import pytest
import torch
from attention_cases import Inputs, Sequence, Step, decoded, linked, make_inputs, whole_chunk
from dense_attention import dense_out
from gpu_kernels import Kernels, attend_in_place, on_device, tolerance
from torch import Tensor

from legokv.kernels.gpu import Regime, attention_arguments

# Heads of an 8-billion Llama.
HEADS, HEAD_SIZE = (32, 8), 128
WORK = {
    "compile": (whole_chunk(1024),),
    "link": (linked((512,) * 8, link_tokens=16, fresh=32),),
    "decode": tuple(decoded(tokens) for tokens in (4129, 1, 517, 2048, 16, 17, 3000, 999)),
    "mixed": (decoded(2049), linked((300, 511, 40), link_tokens=16, fresh=7), whole_chunk(129)),
}
REGIMES = [Regime.AUTO, Regime.REFERENCE, Regime.SPLIT, Regime.TILED, Regime.MIXED]
ALL_REGIMES = pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())


def step_of(sequences: tuple[Sequence, ...], seed: int) -> Step:
    return Step(sequences, heads=HEADS, head_size=HEAD_SIZE, dtype=torch.bfloat16, seed=seed)


@ALL_REGIMES
@pytest.mark.parametrize("work", WORK)
def test_long_steps_are_those_of_the_reference(
    kernels: Kernels, gpu: torch.device, seed: int, work: str, regime: Regime
) -> None:
    inputs = on_device(make_inputs(step_of(WORK[work], seed)), gpu)
    out, pool = kernels.attend(inputs, regime)
    allowed = tolerance(torch.bfloat16, regime)
    torch.testing.assert_close(out.double(), dense_out(inputs, pool), rtol=0, atol=allowed)


@ALL_REGIMES
def test_pages_past_two_to_the_31_elements_are_read_and_written(
    kernels: Kernels, gpu: torch.device, seed: int, regime: Regime
) -> None:
    inputs = make_inputs(step_of((linked((40, 33), link_tokens=5, fresh=3), decoded(50)), seed))
    given = on_device(inputs, gpu)
    small, page_elements = given.pool, given.pool[0].numel()
    shift = 2**31 // page_elements + 3
    large = torch.empty((shift + len(small), *small.shape[1:]), dtype=small.dtype, device=gpu)
    large[:shift] = torch.nan
    large[shift:] = small
    pages = given.tables.pages.clone()
    pages[..., 0] += torch.where(pages[..., 3] > 0, shift, 0).int()
    slots = given.tables.slots + shift * small.shape[2]
    moved = replace(given, pool=large, tables=replace(given.tables, pages=pages, slots=slots))
    out = attend_in_place(kernels, moved, regime)
    meant_out, meant_pool = kernels.attend(inputs, regime)
    assert torch.equal(out, meant_out)
    assert torch.equal(large[shift:].view(torch.int16), meant_pool.view(torch.int16))
    assert large[:shift].isnan().all(), "pages of nobody were written"


@ALL_REGIMES
def test_a_step_gives_the_same_bits_every_time(
    kernels: Kernels, gpu: torch.device, seed: int, regime: Regime
) -> None:
    inputs = on_device(make_inputs(step_of(WORK["mixed"], seed)), gpu)
    first, _ = kernels.attend(inputs, regime)
    for _ in range(5):
        again, _ = kernels.attend(inputs, regime)
        assert torch.equal(again, first)


@ALL_REGIMES
def test_a_launch_waits_for_its_own_stream(
    kernels: Kernels, gpu: torch.device, seed: int, regime: Regime
) -> None:
    inputs = on_device(make_inputs(step_of(WORK["mixed"], seed)), gpu)
    meant, _ = kernels.attend(inputs, regime)
    late = replace(inputs, q=torch.zeros_like(inputs.q))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.q.copy_(inputs.q)
        out, _ = kernels.attend(late, regime)
    torch.cuda.synchronize()
    assert torch.equal(out, meant)


@dataclass(frozen=True)
class Captured:
    """A graph and the memory it writes, which must live as long: it keeps addresses only."""

    graph: torch.cuda.CUDAGraph
    out: Tensor
    workspace: Tensor


def captured(kernels: Kernels, given: Inputs, regime: Regime) -> Captured:
    """The launch as a CUDA graph."""
    arguments = attention_arguments(given.q, given.k, given.v, given.pool, given.tables)
    arguments.regime = regime
    size = kernels.launchers.workspace_bytes(arguments)
    workspace = torch.empty(size, dtype=torch.uint8, device=given.q.device)
    out = torch.full_like(given.q, torch.nan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.launchers.legolink_attention(arguments, out, workspace, kernels.stream())
    return Captured(graph, out, workspace)


@ALL_REGIMES
def test_a_captured_step_reads_what_its_inputs_hold_when_it_is_replayed(
    kernels: Kernels, gpu: torch.device, seed: int, regime: Regime
) -> None:
    held, later = (
        on_device(make_inputs(step_of((decoded(4129), decoded(33)), seed + i)), gpu)
        for i in range(2)
    )
    meant, _ = kernels.attend(later, regime)
    kernels.attend(held, regime)
    capture = captured(kernels, held, regime)
    for name in ("q", "k", "v", "pool"):
        getattr(held, name).copy_(getattr(later, name))
    for name in ("slots", "pages", "positions", "key_positions"):
        getattr(held.tables, name).copy_(getattr(later.tables, name))
    capture.graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(capture.out, meant)

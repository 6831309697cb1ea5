"""Links from captured graphs, as a plan's filled up link steps are: one graph, many tables."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attention_cases import Inputs, Sequence, Step, decoded, expected_out, linked, make_inputs
from gpu_kernels import Kernels, on_device, tolerance
from torch import Tensor

from legokv.kernels.gpu import Regime, attention_arguments

REGIMES = pytest.mark.parametrize(
    "regime", [Regime.AUTO, Regime.TILED, Regime.MIXED], ids=lambda regime: regime.name.lower()
)
# As many tokens, sequences and table rows as each of the links below has at most.
TOKENS, SEQUENCES, ROWS = 64, 2, 32
NOWHERE = 1 << 30
LINKS: tuple[tuple[Sequence, ...], ...] = (
    (linked((150, 130), link_tokens=16, fresh=9), decoded(33)),
    (linked((40, 30, 90, 17), link_tokens=8, fresh=21), decoded(100)),
    (decoded(5), linked((200, 64), link_tokens=16, fresh=32)),
    (linked((16, 17), link_tokens=1, fresh=1),),
)


def filled_up(inputs: Inputs) -> Inputs:
    """The same step in the graph's shapes: tokens of no sequence, sequences of no token."""
    tables = inputs.tables
    tokens, sequences = TOKENS - len(tables.positions), SEQUENCES - tables.pages.shape[0]
    pages = torch.tensor([NOWHERE, 0, 0, 0], dtype=torch.int32).expand(SEQUENCES, ROWS, 4).clone()
    pages[: SEQUENCES - sequences, : tables.pages.shape[1]] = tables.pages

    def longer(tensor: Tensor, by: int, value: float) -> Tensor:
        return torch.cat([tensor, tensor.new_full((by, *tensor.shape[1:]), value)])

    return replace(
        inputs,
        q=longer(inputs.q, tokens, 0.5),
        k=longer(inputs.k, tokens, 0.5),
        v=longer(inputs.v, tokens, 0.5),
        tables=replace(
            tables,
            positions=longer(tables.positions, tokens, 0),
            key_positions=longer(tables.key_positions, tokens, 0),
            slots=longer(tables.slots, tokens, -1),
            query_start=longer(tables.query_start, sequences, int(tables.query_start[-1])),
            pages=pages,
        ),
    )


def link_of(sequences: tuple[Sequence, ...], num_pages: int, seed: int) -> Inputs:
    """A step over a pool of `num_pages`, in the graph's shapes."""
    step = Step(sequences, heads=(8, 2), head_size=128, dtype=torch.bfloat16, seed=seed)
    inputs = make_inputs(step)
    missing = num_pages - inputs.pool.shape[0]
    pool = torch.cat([inputs.pool, inputs.pool.new_full((missing, *inputs.pool.shape[1:]), 0)])
    return filled_up(replace(inputs, pool=pool))


def replayed(kernels: Kernels, call: Callable[[], None]) -> Callable[[], None]:
    """What repeats the launches of `call`: a graph's replay; the host form has none and calls."""
    if kernels.device.type != "cuda":
        return call
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def give(held: Inputs, later: Inputs) -> None:
    """Put another step where the graph reads it."""
    for name in ("q", "k", "v", "pool"):
        getattr(held, name).copy_(getattr(later, name))
    for name in ("slots", "pages", "positions", "key_positions", "query_start"):
        getattr(held.tables, name).copy_(getattr(later.tables, name))


@REGIMES
def test_one_graph_gives_every_link_of_its_shapes(
    kernels: Kernels, seed: int, regime: Regime
) -> None:
    links = [link_of(link, 48, seed + number) for number, link in enumerate(LINKS)]
    held = on_device(links[0], kernels.device)
    held = replace(held, pool=held.pool.clone())
    arguments = attention_arguments(held.q, held.k, held.v, held.pool, held.tables)
    arguments.regime = regime
    size = kernels.launchers.workspace_bytes(arguments)
    workspace = torch.empty(size, dtype=torch.uint8, device=kernels.device)
    out = torch.full_like(held.q, torch.nan)
    replay = replayed(
        kernels,
        lambda: kernels.launchers.legolink_attention(arguments, out, workspace, kernels.stream()),
    )
    for link in (*links, links[0]):
        give(held, link)
        out.fill_(torch.nan)
        replay()
        made, num_tokens = out.cpu(), int(link.tables.query_start[-1])
        torch.testing.assert_close(
            made.double(),
            expected_out(link, held.pool.cpu()),
            rtol=0,
            atol=tolerance(torch.bfloat16, regime),
        )
        assert not made[num_tokens:].any(), "a token of no sequence has attended"

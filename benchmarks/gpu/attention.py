"""One layer's attention in every regime, against SDPA over the same keys gathered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gathered import gather
from session import Session
from shape import PAGE_SIZE
from timing import interleaved
from torch import Tensor
from work import Work, all_work

from legokv.kernels.gpu import AttentionTables, Regime, attention_arguments

SDPA, UNMASKED = "sdpa", "sdpa unmasked"


@dataclass(frozen=True)
class Layer:
    """One layer's tensors for one step."""

    q: Tensor
    k: Tensor
    v: Tensor
    pool: Tensor
    out: Tensor


def measure(session: Session) -> list[dict[str, Any]]:
    """For each step: seconds of each form a layer, and how far each is from SDPA's answer."""
    model = session.model
    made = []
    for work in all_work(session.sizes, PAGE_SIZE, model.vocab_size):
        made.append(measure_step(session, work))
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
    return made


def measure_step(session: Session, work: Work) -> dict[str, Any]:
    tables = session.tables(work.batch)
    num_pools = session.num_pools(needed_bytes(session, work))
    layers = [make_layer(session, work) for _ in range(num_pools)]
    calls = {r.name.lower(): kernel_call(session, layers, tables, r) for r in Regime}
    calls["auto"]()
    gathered = [gather(layer.q, layer.pool, tables) for layer in layers]
    meant = gathered[0].rows(gathered[0].call()()).float()
    errors = {}
    for name, call in calls.items():
        layers[0].out.fill_(torch.nan)
        call()
        errors[name] = float((layers[0].out.float() - meant).abs().max())
    calls[SDPA] = each_of([form.call() for form in gathered])
    calls[UNMASKED] = each_of([form.unmasked() for form in gathered])
    times = interleaved(calls, session.device, session.rounds, calls_in_one=len(layers))
    return {
        "step": work.name,
        "bytes": needed_bytes(session, work),
        "flops": needed_flops(session, work),
        "seconds": {name: vars(timing) for name, timing in times.items()},
        "max_difference_to_sdpa": errors,
    }


def make_layer(session: Session, work: Work) -> Layer:
    model, tokens = session.model, work.num_tokens
    kv = (tokens, model.num_kv_heads, model.head_size)
    q = session.normal(tokens, model.num_heads, model.head_size)
    page = (2, PAGE_SIZE, model.num_kv_heads, model.head_size)
    return Layer(
        q=q,
        k=session.normal(*kv),
        v=session.normal(*kv),
        pool=session.normal(work.num_pages, *page),
        out=torch.full_like(q, torch.nan),
    )


def kernel_call(
    session: Session, layers: list[Layer], tables: AttentionTables, regime: Regime
) -> Callable[[], object]:
    """Our kernels of one regime, once for each layer; memory is taken here, not in the call."""

    def one(layer: Layer) -> Callable[[], object]:
        arguments = attention_arguments(layer.q, layer.k, layer.v, layer.pool, tables)
        arguments.regime = regime
        size = session.launchers.workspace_bytes(arguments)
        workspace = torch.empty(size, dtype=torch.uint8, device=session.device)
        return lambda: session.launchers.legolink_attention(
            arguments, layer.out, workspace, session.stream()
        )

    return each_of([one(layer) for layer in layers])


def each_of(calls: list[Callable[[], object]]) -> Callable[[], object]:
    return lambda: [call() for call in calls]


def needed_bytes(session: Session, work: Work) -> int:
    """The least that must move: visible keys and values once a sequence, q in, out, K and V."""
    model, size = session.model, torch.finfo(session.dtype).bits // 8
    kv_elements = 2 * model.num_kv_heads * model.head_size
    own = work.num_tokens * (2 * model.num_heads * model.head_size + 2 * kv_elements)
    return size * (work.num_keys * kv_elements + own)


def needed_flops(session: Session, work: Work) -> int:
    """Two products over the pairs that are seen, two operations a multiply-add."""
    return 4 * work.num_pairs * session.model.num_heads * session.model.head_size

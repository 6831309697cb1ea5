"""One layer's attention, against SDPA over the same keys gathered, by each of its kernels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gathered import gather
from session import Session
from shape import PAGE_SIZE
from timing import Call, interleaved
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from work import Work, WorkMaker, attention_work

from legokv.kernels.gpu import AttentionTables, Regime, attention_arguments

SDPA = "sdpa"
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
SPLITS = (1, 2, 4, 8, 16, 32)
# SDPA's own copies of gathered keys are left out where they would not fit beside the pools.
MOST_GATHERED_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Layer:
    """One layer's tensors for one step."""

    q: Tensor
    k: Tensor
    v: Tensor
    pool: Tensor
    out: Tensor


@dataclass(frozen=True)
class Form:
    """A regime, and over how many splits of the keys; 0: as the plan chooses."""

    regime: Regime = Regime.AUTO
    num_splits: int = 0
    lists: bool = False  # what sequences have in common is read by shared tiles, as by runner cuda

    @property
    def name(self) -> str:
        splits = f" {self.num_splits} splits" if self.num_splits else ""
        lists = " shared tiles" if self.lists else ""
        return f"{self.regime.name.lower()}{splits}{lists}"


def measure(session: Session) -> Iterator[dict[str, Any]]:
    """For each step: seconds of each form a layer, and how far each is from SDPA's answer."""
    maker = WorkMaker(session.sizes, PAGE_SIZE, session.model.vocab_size)
    for work in attention_work(maker, session.sizes):
        yield measure_step(session, work)
        if session.device.type == "cuda":
            torch.cuda.empty_cache()


def forms(session: Session, work: Work, *, shares: bool) -> list[Form]:
    """What is timed: the plan's choice, with what is shared read once and without, the kernels by
    name, and splits where keys are many.
    """
    named = [Form()]
    if shares:
        named.append(Form(lists=True))
    if work.is_ragged:
        return [*named, Form(Regime.SPLIT), Form(Regime.TILED)]
    swept = (
        SPLITS if len(work.batch.logit_rows) == 1 and work.num_keys >= session.sweep_keys else ()
    )
    rows = work.num_tokens // len(work.batch.logit_rows)
    regime = Regime.SPLIT if rows == 1 else Regime.TILED
    return [*named, *(Form(regime, splits) for splits in swept)]


def measure_step(session: Session, work: Work) -> dict[str, Any]:
    tables = session.tables(work.batch)
    num_pools = session.num_pools(needed_bytes(session, work))
    layers = [make_layer(session, work) for _ in range(num_pools)]
    listed = session.shared(work.batch, tables)
    calls = {
        form.name: kernel_call(session, layers, listed if form.lists and listed else tables, form)
        for form in forms(session, work, shares=listed is not None)
    }
    calls["auto"]()
    others, meant, refused = gathered_calls(session, work, layers, tables)
    errors = {}
    for name, call in calls.items() if meant is not None else ():
        layers[0].out.fill_(torch.nan)
        call()
        errors[name] = float((layers[0].out.float() - meant).abs().max())
    times = interleaved({**calls, **others}, session.device, session.rounds, len(layers))
    return {
        "step": work.name,
        "tokens": work.num_tokens,
        "bytes": needed_bytes(session, work),
        "flops": needed_flops(session, work),
        "seconds": {name: vars(timing) for name, timing in times.items()},
        "max_difference_to_sdpa": errors,
        "refused": refused,
    }


def gathered_calls(
    session: Session, work: Work, layers: list[Layer], tables: AttentionTables
) -> tuple[dict[str, Call], Tensor | None, dict[str, str]]:
    """SDPA as torch chooses it and by each backend, its answer, and the words of who refuses."""
    keys = int(work.batch.pages[..., 3].sum())
    row_bytes = 2 * session.model.num_kv_heads * session.model.head_size * 2
    if work.is_ragged or keys * row_bytes * len(layers) > MOST_GATHERED_BYTES:
        return {}, None, {}
    gathered = [gather(layer.q, layer.pool, tables) for layer in layers]
    meant = gathered[0].rows(gathered[0].call()()).float()
    calls: dict[str, Call] = {SDPA: each_of([form.call() for form in gathered])}
    unmasked = each_of([form.unmasked() for form in gathered])
    refused = {}
    for name, backend in BACKENDS.items() if session.device.type == "cuda" else ():
        pinned = by_backend(unmasked, backend)
        try:
            pinned()
        except RuntimeError as error:
            refused[f"{name} unmasked"] = str(error).splitlines()[0][:200]
        else:
            calls[f"{name} unmasked"] = pinned
    return calls, meant, refused


def by_backend(call: Call, backend: SDPBackend) -> Call:
    def pinned() -> object:
        with sdpa_kernel(backend):
            return call()

    return pinned


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
    session: Session, layers: list[Layer], tables: AttentionTables, form: Form
) -> Callable[[], object]:
    """Our kernels of one form, once for each layer; memory is taken here, not in the call."""

    def one(layer: Layer) -> Callable[[], object]:
        arguments = attention_arguments(layer.q, layer.k, layer.v, layer.pool, tables)
        arguments.regime, arguments.num_splits = form.regime, form.num_splits
        size = session.launchers.workspace_bytes(arguments)
        workspace = torch.empty(size, dtype=torch.uint8, device=session.device)
        return lambda: session.launchers.legolink_attention(
            arguments, layer.out, workspace, session.stream()
        )

    return each_of([one(layer) for layer in layers])


def each_of(calls: list[Callable[[], object]]) -> Callable[[], object]:
    return lambda: [call() for call in calls]


def needed_bytes(session: Session, work: Work) -> int:
    """The least that must move: keys and values that are seen, each once, q in, out, K and V."""
    model, size = session.model, torch.finfo(session.dtype).bits // 8
    kv_elements = 2 * model.num_kv_heads * model.head_size
    own = work.num_tokens * (2 * model.num_heads * model.head_size + 2 * kv_elements)
    return size * (work.num_keys * kv_elements + own)


def needed_flops(session: Session, work: Work) -> int:
    """Two products over the pairs that are seen, two operations a multiply-add."""
    return 4 * work.num_pairs * session.model.num_heads * session.model.head_size

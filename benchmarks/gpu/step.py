"""A whole model of random weights through the product's runner, the device's time apart."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from attention import needed_flops
from session import Session
from shape import PAGE_SIZE
from timing import interleaved, timing_of
from torch import Tensor
from work import Work, WorkMaker, product_work

from legokv.kernels.gpu import AttentionTables, attention_arguments
from legokv.model.config import ModelConfig
from legokv.model.decoder import Attention, Decoder
from legokv.runners.attention_forms import KernelForm
from legokv.runners.eager import EagerRunner

# Left for workspaces, activations and torch itself.
SPARE_BYTES = 24 * 2**30


def measure(session: Session) -> Iterator[dict[str, Any]]:
    """For each step: seconds of the runner, until its call returns, and of the device alone."""
    model = fitting(session)
    maker = WorkMaker(session.sizes, PAGE_SIZE, model.vocab_size)
    works = product_work(maker, session.sizes)
    runner = EagerRunner(
        model,
        random_weights(session, model),
        KernelForm(session.launchers, model, session.device),
        session.device,
        num_pages=max(work.num_pages for work in works),
        page_size=PAGE_SIZE,
    )
    for work in works:
        yield measure_step(session, runner, work)


def fitting(session: Session) -> ModelConfig:
    """The model with as many layers as the device's memory holds; all of them on a CPU."""
    if session.device.type != "cuda":
        return session.model
    with torch.device("meta"):
        weights = Decoder(replace(session.model, num_layers=1)).state_dict()
    layer = 2 * sum(w.numel() for name, w in weights.items() if name.startswith("layers."))
    rest = 2 * sum(w.numel() for w in weights.values()) - layer
    free = torch.cuda.mem_get_info()[0] - rest - SPARE_BYTES
    return replace(session.model, num_layers=max(1, min(session.model.num_layers, free // layer)))


def random_weights(session: Session, model: ModelConfig) -> dict[str, Tensor]:
    """Weights that keep activations near one: norms of ones, matrices by their fan-in."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Decoder(model).state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape, dtype=session.dtype, device=session.device)
        else:
            weights[name] = session.normal(*shape).mul_(1 / math.sqrt(shape[-1]))
    return weights


@torch.inference_mode()
def measure_step(session: Session, runner: EagerRunner, work: Work) -> dict[str, Any]:
    on_gpu = session.device.type == "cuda"
    # The host form measures nothing worth knowing twice.
    rounds = session.rounds if on_gpu else 1
    ids = torch.from_numpy(work.batch.input_ids).to(session.device)
    rows = torch.from_numpy(work.batch.logit_rows).to(session.device)
    tables = session.tables(work.batch)
    attention = paged_attention(session, session.shared(work.batch, tables) or tables, work)

    def step() -> Tensor:
        return runner.decoder(ids, rows, runner.pools, attention)[0]

    logits = runner.run(work.batch)
    wall, host = runner_seconds(session, runner, work, rounds)
    on_device = interleaved({"step": step}, session.device, rounds)["step"]
    weights = runner.decoder.state_dict().values()
    return {
        "step": work.name,
        "num_layers": runner.decoder.config.num_layers,
        "tokens": work.num_tokens,
        "flops": step_flops(session, runner.decoder, work),
        "weight_bytes": sum(w.numel() * w.element_size() for w in weights),
        "device_seconds": vars(on_device),
        "runner_seconds": vars(timing_of(wall)),
        "host_seconds": vars(timing_of(host)),
        "logits_are_finite": bool(logits.isfinite().all()),
    }


def runner_seconds(
    session: Session, runner: EagerRunner, work: Work, rounds: int
) -> tuple[list[float], list[float]]:
    """Of each step until the device has finished, and until the call had returned."""
    wall, host = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        runner.run(work.batch)
        host.append(time.perf_counter() - started)
        if session.device.type == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - started)
    return wall, host


def paged_attention(session: Session, tables: AttentionTables, work: Work) -> Attention:
    """The attention of all layers, over one output and one workspace; AUTO chooses the kernel."""
    model = session.model
    q = session.normal(work.num_tokens, model.num_heads, model.head_size)
    kv = session.normal(work.num_tokens, model.num_kv_heads, model.head_size)
    pool = session.normal(1, 2, PAGE_SIZE, model.num_kv_heads, model.head_size)
    size = session.launchers.workspace_bytes(attention_arguments(q, kv, kv, pool, tables))
    workspace = torch.empty(size, dtype=torch.uint8, device=session.device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        held = tuple(given.contiguous() for given in (q, k, v))
        arguments = attention_arguments(*held, pool, tables)
        session.launchers.legolink_attention(arguments, out, workspace, session.stream())
        return out, pool

    return attend


def step_flops(session: Session, decoder: Decoder, work: Work) -> int:
    """Products with the weights, the head's for its rows only, and the attention's."""
    parameters = {name: w.numel() for name, w in decoder.state_dict().items() if w.dim() > 1}
    head = parameters.pop("head.weight", 0)
    del parameters["embed.weight"]
    products = 2 * (sum(parameters.values()) * work.num_tokens + head * len(work.batch.logit_rows))
    return products + decoder.config.num_layers * needed_flops(session, work)

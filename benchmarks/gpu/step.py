"""A whole step of the model over the paged kernels, weights random and made on the device."""

import math
from dataclasses import replace
from typing import Any

import torch
from attention import needed_flops
from session import Session
from shape import PAGE_SIZE
from timing import eager, interleaved
from torch import Tensor
from work import Work, all_work

from legokv.kernels.gpu import AttentionTables, attention_arguments
from legokv.model.config import ModelConfig
from legokv.model.decoder import Attention, Decoder, decoder_from_weights

# Left for pools, workspaces and torch itself.
SPARE_BYTES = 12 * 2**30
MOST_DECODES = 16


def measure(session: Session) -> list[dict[str, Any]]:
    """For each step: seconds on the device as one graph, and from Python launch by launch."""
    model = fitting(session)
    decoder = random_decoder(session, model)
    # Pools of all layers at once: no more than MOST_DECODES sequences.
    decodes = tuple(n for n in session.sizes.decodes if n <= MOST_DECODES)
    steps = all_work(replace(session.sizes, decodes=decodes), PAGE_SIZE, model.vocab_size)
    return [measure_step(session, decoder, work) for work in steps]


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


def random_decoder(session: Session, model: ModelConfig) -> Decoder:
    """Weights that keep activations near one: norms of ones, matrices by their fan-in."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Decoder(model).state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape, dtype=session.dtype, device=session.device)
        else:
            weights[name] = session.normal(*shape).mul_(1 / math.sqrt(shape[-1]))
    return decoder_from_weights(model, weights)


@torch.inference_mode()
def measure_step(session: Session, decoder: Decoder, work: Work) -> dict[str, Any]:
    model = decoder.config
    page = (2, PAGE_SIZE, model.num_kv_heads, model.head_size)
    pools = [session.normal(work.num_pages, *page) for _ in range(model.num_layers)]
    ids = torch.from_numpy(work.batch.input_ids).to(session.device)
    rows = torch.from_numpy(work.batch.logit_rows).to(session.device)
    attention = paged_attention(session, session.tables(work.batch), work)

    def step() -> Tensor:
        return decoder(ids, rows, pools, attention)[0]

    logits = step()
    # The host form measures nothing worth knowing twice.
    rounds = session.rounds if session.device.type == "cuda" else 1
    on_device = interleaved({"step": step}, session.device, rounds)["step"]
    return {
        "step": work.name,
        "num_layers": model.num_layers,
        "tokens": work.num_tokens,
        "flops": step_flops(session, decoder, work),
        "weight_bytes": sum(w.numel() * w.element_size() for w in decoder.state_dict().values()),
        "seconds": vars(on_device),
        "eager_seconds": vars(eager(step, session.device, rounds)),
        "logits_are_finite": bool(logits.isfinite().all()),
    }


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

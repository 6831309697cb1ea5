"""Importing a chunk into the pools: one launch for all layers, and the runner's whole way."""

from collections.abc import Iterator
from typing import Any

import torch
from session import Session
from shape import PAGE_SIZE
from timing import eager, interleaved
from torch import Tensor

from legokv.model.dtypes import Dtypes
from legokv.runners.attention_forms import importing
from legokv.runners.page_store import PageStore
from legokv.step.graph import graph_shape


def measure(session: Session) -> Iterator[dict[str, Any]]:
    """Seconds of a chunk's import in all layers, from where it may lie."""
    model, pages = session.model, session.import_pages
    graph = graph_shape(model, Dtypes.same("bfloat16"), PAGE_SIZE)
    store = PageStore(graph, 4 * pages, session.device, importing(session.launchers))
    num_tokens = pages * PAGE_SIZE
    kv = session.normal(model.num_layers, 2, num_tokens, model.num_kv_heads, model.head_size)
    numbers = torch.randperm(4 * pages)[:pages]
    stored = store.export_pages(numbers.tolist(), num_tokens)
    on_gpu = session.device.type == "cuda"
    from_device = {"from device": kv, "float32 from device": kv.float()}
    of_runner = {"runner, pinned": stored} | ({"runner, pageable": kv.cpu()} if on_gpu else {})

    def launched(source: Tensor) -> Any:
        return lambda: store.import_pages(numbers.tolist(), source)

    at = numbers.to(session.device, torch.int32)
    all_layers = store.pools[0].new_zeros((model.num_layers, 4 * pages, *graph.page))
    calls = {
        name: (lambda source=source: importing(session.launchers)(all_layers, source, at))
        for name, source in from_device.items()
    }
    times = interleaved(calls, session.device, session.rounds)
    times |= {
        name: eager(launched(source), session.device, session.rounds)
        for name, source in of_runner.items()
    }
    for name, source in (from_device | of_runner).items():
        yield {
            "source": name,
            "tokens": num_tokens,
            "bytes_read": source.numel() * source.element_size(),
            "bytes_written": kv.numel() * kv.element_size(),
            "seconds": vars(times[name]),
        }

"""What leaves the pools: the same numbers, whether or not memory for them can be pinned."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from legokv.built.folder import read_engine_folder
from legokv.runners.page_store import PageStore
from legokv.step.graph import graph_shape

EMPTY = torch.empty


def not_pinned(*sizes: object, pin_memory: bool = False, **about: object) -> Tensor:
    if pin_memory:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")
    return EMPTY(*sizes, **about)  # type: ignore[call-overload, no-any-return]


def test_where_no_memory_can_be_pinned_chunks_leave_all_the_same_and_the_log_says_it_once(
    tiny_engine_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    facts = read_engine_folder(tiny_engine_folder("llama"))
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size)
    store = PageStore(graph, 3, torch.device("cpu"))
    # As on a GPU.
    store._pins = True
    for pool in store.pools:
        pool.normal_()
    monkeypatch.setattr(torch, "empty", not_pinned)
    with caplog.at_level(logging.WARNING, "legokv"):
        found = [store.export_pages([2, 0], facts.page_size + 3) for _ in range(2)]
    for kv in found:
        assert torch.equal(kv[1, 0, : facts.page_size], store.pools[1][2, 0])
        assert torch.equal(kv[1, 1, facts.page_size :], store.pools[1][0, 1, :3])
    (line,) = caplog.messages
    assert line.startswith(f"no {found[0].nbytes} bytes of memory can be pinned here (CUDA error:")
    assert "DSA" not in line

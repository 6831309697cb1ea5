"""Importing pages into the pools, from device and from pinned host memory."""

import math
from typing import Any

import torch
from session import Session
from shape import PAGE_SIZE
from timing import interleaved

PAGES = 32  # a chunk of 512 tokens


def measure(session: Session) -> list[dict[str, Any]]:
    """Seconds a layer for one chunk's pages; every layer has its own block and pool."""
    model = session.model
    page = (2, PAGE_SIZE, model.num_kv_heads, model.head_size)
    num_pools = session.num_pools(2 * PAGES * math.prod(page))
    pools = [session.normal(4 * PAGES, *page) for _ in range(num_pools)]
    numbers = torch.randperm(4 * PAGES)[:PAGES].to(session.device, torch.int32)
    stored = [session.normal(PAGES, *page) for _ in pools]
    sources = {"from device": stored, "float32 from device": [block.float() for block in stored]}
    if session.device.type == "cuda":
        sources["from pinned host"] = [block.cpu().pin_memory() for block in stored]

    def importing(blocks: list[torch.Tensor]) -> None:
        for pool, block in zip(pools, blocks, strict=True):
            session.launchers.kv_import(pool, block, numbers, session.stream())

    calls = {name: (lambda blocks=blocks: importing(blocks)) for name, blocks in sources.items()}
    times = interleaved(calls, session.device, session.rounds, calls_in_one=len(pools))
    return [
        {
            "source": name,
            "bytes_read": blocks[0].numel() * blocks[0].element_size(),
            "bytes_written": stored[0].numel() * stored[0].element_size(),
            "seconds": vars(times[name]),
        }
        for name, blocks in sources.items()
    ]

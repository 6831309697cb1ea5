"""What this device reaches at best in torch's own hands: copies, and a large matrix product."""

from collections.abc import Iterator
from typing import Any

import torch
from session import Session
from timing import interleaved


def measure(session: Session) -> Iterator[dict[str, Any]]:
    """Bytes/s read and written by a copy on the device and one from pinned memory; FLOP/s."""
    on_gpu = session.device.type == "cuda"
    size, side = (2**30, 8192) if on_gpu else (2**22, 128)
    source, target = (torch.ones(size, dtype=torch.uint8, device=session.device) for _ in range(2))
    a, b = session.normal(side, side), session.normal(side, side)
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}
    if on_gpu:
        host = torch.ones(size // 4, dtype=torch.uint8).pin_memory()
        calls["host"] = lambda: target[: size // 4].copy_(host, non_blocking=True)
    times = interleaved(calls, session.device, session.rounds)
    yield {
        "copy_bytes_per_second": 2 * size / times["copy"].median,
        "matmul_flops_per_second": 2 * side**3 / times["matmul"].median,
        "host_copy_bytes_per_second": size / 4 / times["host"].median if on_gpu else None,
        "dtype": str(session.dtype).removeprefix("torch."),
    }

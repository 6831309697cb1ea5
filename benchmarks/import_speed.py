"""How fast a chunk goes from host memory into the pools on a CPU: python benchmarks/import_speed.py

Interleaved: all layers' runs copied where they lie, by one call, and as it was before, turned into
pages of a block and then copied layer by layer. Both leave the same pools.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.cpu import NativeCalls
from legokv.kernels.native_library import NativeLibrary
from legokv.runners.page_store import page_blocks

SHAPES = {"SmolLM2-135M": (30, 3, 64), "Llama-8B": (32, 8, 128)}
PAGE_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    calls = NativeCalls(NativeLibrary(build_native_library(print)))
    for name, shape in SHAPES.items():
        print(json.dumps({"model": name, **measured(calls, shape, arguments)}), flush=True)


@torch.inference_mode()
def measured(
    calls: NativeCalls, shape: tuple[int, int, int], arguments: argparse.Namespace
) -> dict[str, object]:
    """Medians in GB/s stored, and of the ratio of neighbours."""
    num_layers, num_kv_heads, head_size = shape
    num_pages = -(-arguments.tokens // PAGE_SIZE)
    kv = torch.randn(num_layers, 2, arguments.tokens, num_kv_heads, head_size).bfloat16()
    pages = torch.randperm(2 * num_pages)[:num_pages].int()
    page = (2, PAGE_SIZE, num_kv_heads, head_size)
    pools, others = (torch.zeros(num_layers, 2 * num_pages, *page).bfloat16() for _ in range(2))

    def before() -> None:
        blocks = page_blocks(kv, num_pages, PAGE_SIZE)
        for pool, block in zip(pools.unbind(), blocks, strict=True):
            calls.kv_import(pool, block, pages, num_threads=torch.get_num_threads())

    def now() -> None:
        calls.import_kv(others, kv, pages, num_threads=torch.get_num_threads())

    taken = [(seconds(before), seconds(now)) for _ in range(arguments.rounds)]
    assert torch.equal(pools, others), "both leave the same pools"
    num_bytes = _bytes(kv)
    return {
        "tokens": arguments.tokens,
        "megabytes": round(num_bytes / 1e6, 1),
        "before_gb_per_second": round(num_bytes / statistics.median(b for b, _ in taken) / 1e9, 2),
        "now_gb_per_second": round(num_bytes / statistics.median(n for _, n in taken) / 1e9, 2),
        "times_faster": round(statistics.median(b / n for b, n in taken), 1),
        "lowest_and_highest": [round(f(b / n for b, n in taken), 1) for f in (min, max)],
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

"""One layer's attention in every form this processor has, without a model around it.

A link of eight chunks of 512 tokens and 32 fresh ones at k = 16, a prefill of 2,048 tokens and one
token over 4,096, in SmolLM2's heads; forms interleaved, the best run of each, beside torch's own
matrix product. Operations are counted over the keys that are seen.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.cpu import NativeCalls, StepShape
from legokv.kernels.gpu import AttentionTables
from legokv.kernels.native_library import NativeLibrary
from legokv.link.link import bind, link
from legokv.link.policy import legolink
from legokv.ops.attention_tiles import step_tables
from legokv.ops.paged_attention import attend_in_place
from legokv.runners.attention_forms import index_tables
from legokv.step.batch import Piece, StepBatch, step_batch

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, PAGE_SIZE = 9, 3, 64, 16
SCALE = HEAD_SIZE**-0.5
INV_FREQ = 1e5 ** -(torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
CHUNK_TOKENS = 512
Forms = dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]


@dataclass(frozen=True)
class Case:
    """A step of one sequence, over a pool of `num_pages`."""

    name: str
    batch: StepBatch
    num_pages: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products, over the keys that are seen."""
        first, filled = self.batch.pages[0, :, 2], self.batch.pages[0, :, 3]
        seen = self.batch.positions[:, None] + 1 - first
        return 4 * int(np.clip(seen, 0, filled).sum()) * NUM_HEADS * HEAD_SIZE


def linked(name: str, num_chunks: int, num_fresh: int, last: int | None = None) -> Case:
    """A prompt of chunks and fresh tokens at k = 16; only its last `last` tokens if given."""
    chunks = [Chunk(str(n), "", (0,) * CHUNK_TOKENS) for n in range(num_chunks)]
    made = link([*chunks, [0] * num_fresh], legolink(16), PAGE_SIZE)
    pages = iter(range(10**6))
    chunk_pages = [[next(pages) for _ in range(CHUNK_TOKENS // PAGE_SIZE)] for _ in made.chunks]
    bound = bind(made, chunk_pages, [next(pages) for _ in range(made.num_private_pages)], PAGE_SIZE)
    part = slice(-last if last else None, None)
    arrays = (made.token_ids, made.positions, made.key_positions, bound.slots)
    return Case(name, step_batch([Piece(*(a[part] for a in arrays), bound.table)]), next(pages))


def forms_of(case: Case, dtype: torch.dtype, calls: NativeCalls, stack: ExitStack) -> Forms:
    tables = index_tables(case.batch)
    tiles = step_tables(**tables, inv_freq=INV_FREQ, page_size=PAGE_SIZE, dtype=dtype)
    forms: Forms = {"torch": lambda q, k, v, pool: attend_in_place(q, k, v, pool, tiles, SCALE)}
    native = AttentionTables(**tables, inv_freq=INV_FREQ, scale=SCALE)
    shape = StepShape(case.num_pages, PAGE_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, dtype)
    for each in calls.instruction_sets()[1:]:
        if each.bfloat16_only and dtype != torch.bfloat16:
            continue
        threads = torch.get_num_threads()
        step = calls.step(native, shape, num_threads=threads, instruction_set=each)
        begun = stack.enter_context(step)
        forms[begun.instruction_set.name.lower()] = begun.attend
    return forms


def best_seconds(forms: Forms, inputs: list[Tensor], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 1):
        for name, form in forms.items():
            started = time.perf_counter()
            form(*inputs)
            seconds[name].append(time.perf_counter() - started)
    return {name: min(values[1:]) for name, values in seconds.items()}


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of torch's product of 1,024 by 1,024, the best of ten."""
    square = torch.randn(1024, 1024).to(dtype)
    seconds = best_seconds({"": lambda *_: square @ square}, [], 10)[""]
    return 2 * 1024**3 / seconds / 1e9


def measured(case: Case, dtype: torch.dtype, calls: NativeCalls, rounds: int) -> Iterator[str]:
    random = torch.Generator().manual_seed(0)
    heads = torch.randn(
        len(case.batch.positions), NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE, generator=random
    ).to(dtype)
    shape = (case.num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_SIZE)
    pool = torch.randn(shape, generator=random).to(dtype)
    inputs = [*heads.split((NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS), 1), pool]
    with ExitStack() as stack:
        times = best_seconds(forms_of(case, dtype, calls, stack), inputs, rounds)
    for name, seconds in times.items():
        rate = case.operations / seconds / 1e9
        yield f"{case.name:>13} {str(dtype)[6:]:>9} {name:>12} {seconds * 1e3:9.3f} ms {rate:7.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    calls = NativeCalls(NativeLibrary(build_native_library(print)))
    print(f"{arguments.threads} threads, best of {arguments.rounds}; the last column is GFLOP/s")
    cases = (linked("link", 8, 32), linked("prefill 2048", 0, 2048), linked("decode", 0, 4096, 1))
    for dtype in (torch.bfloat16, torch.float32):
        print(
            f"{'product':>13} {str(dtype)[6:]:>9} {'torch':>12} {'':12} {product_rate(dtype):7.1f}"
        )
        for case in cases:
            for line in measured(case, dtype, calls, arguments.rounds):
                print(line)


if __name__ == "__main__":
    main()

"""One layer's attention in every form this processor has, without a model around it.

A link of eight chunks of 512 tokens and 32 fresh ones at k = 16, a prefill of 2,048 tokens, one
token over 4,096, one each of several askers over the same eight chunks in orders of their own, and
the link beside 63 of these. In SmolLM2's heads; forms interleaved, the best and the middle run of
each, beside torch's own matrix product. Operations are counted over the keys that are seen. On one
thread times are that thread's own, so that other work on the machine moves them little. --compare
names another CPU library, whose forms are measured too.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

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
    """A step over a pool of `num_pages`."""

    name: str
    batch: StepBatch
    num_pages: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products, over the keys that are seen."""
        owner = np.repeat(np.arange(len(self.batch.pages)), np.diff(self.batch.query_start))
        first, filled = self.batch.pages[owner, :, 2], self.batch.pages[owner, :, 3]
        seen = self.batch.positions[:, None] + 1 - first
        return 4 * int(np.clip(seen, 0, filled).sum()) * NUM_HEADS * HEAD_SIZE


class Prompts:
    """Prompts of chunks that all share and fresh tokens at k = 16, in one pool."""

    def __init__(self, num_chunks: int) -> None:
        self._pages = iter(range(10**6))
        self._chunks = [Chunk(str(n), "", (0,) * CHUNK_TOKENS) for n in range(num_chunks)]
        self._dice = np.random.default_rng(0)
        pages_each = CHUNK_TOKENS // PAGE_SIZE
        self._chunk_pages = [[next(self._pages) for _ in range(pages_each)] for _ in self._chunks]

    def piece(self, num_fresh: int, last: int | None = None) -> Piece:
        """All chunks in any order and fresh tokens; only the last `last` tokens if given."""
        order = [self._chunks[place] for place in self._dice.permutation(len(self._chunks))]
        made = link([*order, [0] * num_fresh], legolink(16), PAGE_SIZE)
        stored = [self._chunk_pages[int(chunk.key)] for chunk in made.chunks]
        private = [next(self._pages) for _ in range(made.num_private_pages)]
        bound = bind(made, stored, private, PAGE_SIZE)
        part = slice(-last if last else None, None)
        arrays = (made.token_ids, made.positions, made.key_positions, bound.slots)
        return Piece(*(array[part] for array in arrays), bound.table)

    def case(self, name: str, pieces: Sequence[Piece]) -> Case:
        return Case(name, step_batch(pieces), next(self._pages))


def cases() -> list[Case]:
    def askers(number: int) -> Case:
        prompts = Prompts(8)
        return prompts.case(f"{number} askers", [prompts.piece(8, 1) for _ in range(number)])

    prefill, decode, linked, mixed = Prompts(0), Prompts(0), Prompts(8), Prompts(8)
    decoding = [mixed.piece(8, 1) for _ in range(63)]
    return [
        linked.case("link", [linked.piece(32)]),
        prefill.case("prefill 2048", [prefill.piece(2048)]),
        decode.case("decode", [decode.piece(4096, 1)]),
        *map(askers, (1, 8, 32, 63, 64)),
        mixed.case("link + 63", [mixed.piece(32), *decoding]),
    ]


def torch_form(case: Case, dtype: torch.dtype) -> Forms:
    tables = index_tables(case.batch)
    tiles = step_tables(**tables, inv_freq=INV_FREQ, page_size=PAGE_SIZE, dtype=dtype)
    return {"torch": lambda q, k, v, pool: attend_in_place(q, k, v, pool, tiles, SCALE)}


def forms_of(case: Case, dtype: torch.dtype, calls: NativeCalls, stack: ExitStack) -> Forms:
    tables, forms = index_tables(case.batch), {}
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


def all_seconds(forms: Forms, inputs: list[Tensor], rounds: int) -> dict[str, list[float]]:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 1):
        for name, form in forms.items():
            started = clock()
            form(*inputs)
            seconds[name].append(clock() - started)
    return {name: sorted(values[1:]) for name, values in seconds.items()}


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of torch's product of 1,024 by 1,024, the best of ten."""
    square = torch.randn(1024, 1024).to(dtype)
    seconds = all_seconds({"": lambda *_: square @ square}, [], 10)[""][0]
    return 2 * 1024**3 / seconds / 1e9


def measured(
    case: Case, dtype: torch.dtype, libraries: Sequence[Path], arguments: argparse.Namespace
) -> Iterator[str]:
    random = torch.Generator().manual_seed(0)
    heads = torch.randn(
        len(case.batch.positions), NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE, generator=random
    ).to(dtype)
    shape = (case.num_pages, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_SIZE)
    pool = torch.randn(shape, generator=random).to(dtype)
    inputs = [*heads.split((NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS), 1), pool]
    forms = {} if arguments.forms else torch_form(case, dtype)
    with ExitStack() as stack:
        for number, library in enumerate(libraries):
            calls = NativeCalls(NativeLibrary(library))
            for name, form in forms_of(case, dtype, calls, stack).items():
                if name in (arguments.forms or [name]):
                    forms[name + " compared" * number] = form
        times = all_seconds(forms, inputs, arguments.rounds)
    for name, seconds in times.items():
        rate, middle = case.operations / seconds[0] / 1e9, seconds[len(seconds) // 2]
        yield (
            f"{case.name:>13} {str(dtype)[6:]:>9} {name:>22} {seconds[0] * 1e3:9.3f} ms "
            f"{middle * 1e3:9.3f} ms {rate:7.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--forms", nargs="*", default=[], help="these alone: amx, avx512, …")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--compare", type=Path, nargs="*", default=[], help="another CPU library")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    libraries = [build_native_library(print), *arguments.compare]
    print(
        f"{arguments.threads} threads, best and middle of {arguments.rounds}; GFLOP/s of the best"
    )
    for dtype in (getattr(torch, name) for name in arguments.dtypes):
        print(
            f"{'product':>13} {str(dtype)[6:]:>9} {'torch':>22} {'':25} {product_rate(dtype):7.1f}"
        )
        for case in cases():
            for line in measured(case, dtype, libraries, arguments):
                print(line, flush=True)


if __name__ == "__main__":
    main()

"""The steps that are measured, with tables made by the library's own linking. No device here."""

from dataclasses import dataclass

import numpy as np

from legokv.chunks.chunk import Chunk
from legokv.link.link import bind, link
from legokv.link.policy import legolink, nothing
from legokv.step.batch import Piece, StepBatch, step_batch
from legokv.step.sequence import TokenSequence, chunk_sequence, linked_sequence


@dataclass(frozen=True)
class Work:
    """One step, and how many pages it reads and writes (numbers 0 to num_pages - 1, shuffled)."""

    name: str
    batch: StepBatch
    num_pages: int

    @property
    def num_tokens(self) -> int:
        return len(self.batch.input_ids)

    @property
    def num_keys(self) -> int:
        """Keys that some token of their sequence sees, each counted once a sequence."""
        return int(self.batch.pages[..., 3].sum())

    @property
    def num_pairs(self) -> int:
        """(token, key) pairs where the key stands at or before the token, in its sequence."""
        pairs = 0
        for b, rows in enumerate(self.batch.pages):
            tokens = self.batch.positions[self.batch.query_start[b] : self.batch.query_start[b + 1]]
            seen = np.clip(tokens[:, None] + 1 - rows[:, 2], 0, rows[:, 3])
            pairs += int(seen.sum())
        return pairs


@dataclass(frozen=True)
class WorkSizes:
    """How large the measured steps are, in tokens."""

    chunk_tokens: int = 512
    num_chunks: int = 8
    link_tokens: int = 16
    fresh_tokens: int = 32
    compiled_tokens: int = 1024
    decodes: tuple[int, ...] = (1, 16, 64)


SMALL = WorkSizes(chunk_tokens=24, num_chunks=2, fresh_tokens=3, compiled_tokens=18, decodes=(2,))


def all_work(sizes: WorkSizes, page_size: int, vocab_size: int) -> list[Work]:
    """A chunk's compile, a link, and decodes over linked chunks of several sequences at once."""
    maker = _WorkMaker(sizes, page_size, np.random.default_rng(0), vocab_size)
    decodes = [maker.decode(num_sequences) for num_sequences in sizes.decodes]
    return [maker.compile(), maker.link(), *decodes]


@dataclass(frozen=True)
class _WorkMaker:
    sizes: WorkSizes
    page_size: int
    random: np.random.Generator
    vocab_size: int

    def compile(self) -> Work:
        num_tokens = self.sizes.compiled_tokens
        num_pages = -(-num_tokens // self.page_size)
        pages = self.random.permutation(num_pages).tolist()
        sequence = chunk_sequence(self._ids(num_tokens), pages, self.page_size)
        return Work(f"compile {num_tokens}", step_batch([_all_of(sequence)]), num_pages)

    def link(self) -> Work:
        sizes = self.sizes
        pages = self._free_pages(1)
        sequence = self._linked(pages, sizes.link_tokens, sizes.fresh_tokens)
        name = (
            f"link {sizes.num_chunks}x{sizes.chunk_tokens} "
            f"k={sizes.link_tokens} +{sizes.fresh_tokens}"
        )
        return Work(name, step_batch([_all_of(sequence)]), self._pages_each())

    def decode(self, num_sequences: int) -> Work:
        pages = self._free_pages(num_sequences)
        pieces = [_all_of(self._linked(pages, 0, 1)) for _ in range(num_sequences)]
        keys = self.sizes.num_chunks * self.sizes.chunk_tokens + 1
        name = f"decode {num_sequences}x{keys}"
        return Work(name, step_batch(pieces), num_sequences * self._pages_each())

    def _linked(self, free: list[int], link_tokens: int, fresh_tokens: int) -> TokenSequence:
        sizes = self.sizes
        chunks = [
            Chunk(f"chunk {n}", "measured", self._ids(sizes.chunk_tokens))
            for n in range(sizes.num_chunks)
        ]
        policy = legolink(link_tokens) if link_tokens else nothing
        made = link([*chunks, self._ids(fresh_tokens)], policy, self.page_size)
        per_chunk = -(-sizes.chunk_tokens // self.page_size)
        chunk_pages = [[free.pop() for _ in range(per_chunk)] for _ in chunks]
        private = [free.pop() for _ in range(made.num_private_pages)]
        return linked_sequence(made, bind(made, chunk_pages, private, self.page_size))

    def _pages_each(self) -> int:
        """Pages that hold any of these requests: its chunks', and its own."""
        sizes, size = self.sizes, self.page_size
        heads = sizes.num_chunks * -(-sizes.link_tokens // size)
        return (
            sizes.num_chunks * -(-sizes.chunk_tokens // size)
            + heads
            + 1
            + sizes.fresh_tokens // size
            + 1
        )

    def _free_pages(self, num_sequences: int) -> list[int]:
        return self.random.permutation(num_sequences * self._pages_each()).tolist()

    def _ids(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self.random.integers(0, self.vocab_size, num_tokens).tolist())


def _all_of(sequence: TokenSequence) -> Piece:
    return sequence.next(sequence.num_left)

"""The steps that are measured, with tables made by the library's own linking. No device here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        """Keys that some token sees, those of a page once, however many sequences share it."""
        rows = self.batch.pages.reshape(-1, 4)
        rows = rows[rows[:, 3] > 0]
        filled = np.zeros(self.num_pages, np.int32)
        np.maximum.at(filled, rows[:, 0], rows[:, 3])
        return int(filled.sum())

    @property
    def num_pairs(self) -> int:
        """(token, key) pairs where the key stands at or before the token, in its sequence."""
        pairs = 0
        for b, rows in enumerate(self.batch.pages):
            tokens = self.batch.positions[self.batch.query_start[b] : self.batch.query_start[b + 1]]
            seen = np.clip(tokens[:, None] + 1 - rows[:, 2], 0, rows[:, 3])
            pairs += int(seen.sum())
        return pairs

    @property
    def is_ragged(self) -> bool:
        """Whether its sequences have different numbers of tokens: no one SDPA computes it."""
        return len(set(np.diff(self.batch.query_start).tolist())) > 1


@dataclass(frozen=True)
class Documents:
    """What requests stand on: chunks of equal length, and how many tokens are computed anew."""

    num_chunks: int
    chunk_tokens: int
    link_tokens: int = 16
    fresh_tokens: int = 32

    @property
    def num_tokens(self) -> int:
        return self.num_chunks * self.chunk_tokens

    @property
    def name(self) -> str:
        return f"{self.num_chunks}x{self.chunk_tokens}"


@dataclass(frozen=True)
class WorkSizes:
    """How large the measured steps are, in tokens: compiles, links, decodes of one request."""

    compiles: tuple[int, ...] = (1024, 4096)
    links: tuple[Documents, ...] = (
        Documents(8, 512),
        Documents(8, 4096),
        Documents(63, 512),
        Documents(8, 16384),
    )
    decodes: tuple[Documents, ...] = (
        Documents(8, 512),
        Documents(8, 4096),
        Documents(8, 16384),
    )
    many: Documents = Documents(8, 4096)
    num_requests: tuple[int, ...] = (8, 64)
    beside_tokens: int = 512


SMALL = WorkSizes(
    compiles=(18,),
    links=(Documents(2, 24, 16, 3),),
    decodes=(Documents(2, 24),),
    many=Documents(2, 24, 16, 3),
    num_requests=(3,),
    beside_tokens=9,
)


class WorkMaker:
    """Makes steps whose page numbers are shuffled; the same seed, the same steps."""

    def __init__(self, sizes: WorkSizes, page_size: int, vocab_size: int) -> None:
        self._sizes, self._page_size, self._vocab_size = sizes, page_size, vocab_size
        self._random = np.random.default_rng(0)

    def compile(self, num_tokens: int) -> Work:
        free = _Pages(self._random, self._whole_pages(num_tokens))
        piece = self._chunk(free, num_tokens)
        return Work(f"compile {num_tokens}", step_batch([piece]), free.total)

    def link(self, documents: Documents) -> Work:
        free = _Pages(self._random, self._pages_of(documents))
        piece = self._request(documents, self._chunks(documents, free), free)
        name = f"link {documents.name} k={documents.link_tokens} +{documents.fresh_tokens}"
        return Work(name, step_batch([piece]), free.total)

    def decode(self, documents: Documents, num_requests: int = 1, *, shared: bool = False) -> Work:
        documents = replace(documents, link_tokens=0, fresh_tokens=1)
        num_bases = 1 if shared else num_requests
        own = num_requests * (self._pages_of(documents) - self._document_pages(documents))
        free = _Pages(self._random, num_bases * self._document_pages(documents) + own)
        bases = [self._chunks(documents, free) for _ in range(num_bases)]
        pieces = [
            self._request(documents, bases[number % num_bases], free)
            for number in range(num_requests)
        ]
        words = " shared" if shared else ""
        name = f"decode {num_requests}x{documents.num_tokens + 1}{words}"
        return Work(name, step_batch(pieces), free.total)

    def padded(self, work: Work) -> Work:
        """The same with as many table rows as a plan's decode step has: the next power of two."""
        pages = work.batch.pages
        rows = 1 << (pages.shape[1] - 1).bit_length()
        wider = np.pad(pages, ((0, 0), (0, rows - pages.shape[1]), (0, 0)))
        return replace(work, name=f"{work.name} padded", batch=replace(work.batch, pages=wider))

    def link_beside_decodes(self, documents: Documents, num_decodes: int) -> Work:
        decoding = replace(documents, link_tokens=0, fresh_tokens=1)
        own = self._pages_of(decoding) - self._document_pages(decoding)
        free = _Pages(self._random, self._pages_of(documents) + num_decodes * own)
        pages = self._chunks(documents, free)
        pieces = [self._request(documents, pages, free)]
        pieces += [self._request(decoding, pages, free) for _ in range(num_decodes)]
        name = f"link {documents.name} +{documents.fresh_tokens} and {num_decodes} decodes"
        return Work(name, step_batch(pieces), free.total)

    def chunk_beside_decode(self, documents: Documents, num_tokens: int) -> Work:
        decoding = replace(documents, link_tokens=0, fresh_tokens=1)
        free = _Pages(self._random, self._pages_of(decoding) + self._whole_pages(num_tokens))
        pages = self._chunks(decoding, free)
        pieces = [self._chunk(free, num_tokens), self._request(decoding, pages, free)]
        name = f"compile {num_tokens} and a decode of {documents.num_tokens + 1}"
        return Work(name, step_batch(pieces), free.total)

    def _chunk(self, free: "_Pages", num_tokens: int) -> Piece:
        pages = free.take(self._whole_pages(num_tokens))
        return _all_of(chunk_sequence(self._ids(num_tokens), pages, self._page_size))

    def _chunks(self, documents: Documents, free: "_Pages") -> list[list[int]]:
        each = self._whole_pages(documents.chunk_tokens)
        return [free.take(each) for _ in range(documents.num_chunks)]

    def _request(
        self, documents: Documents, chunk_pages: Sequence[Sequence[int]], free: "_Pages"
    ) -> Piece:
        ids = self._ids(documents.chunk_tokens)
        chunks = [Chunk(f"chunk {n}", "measured", ids) for n in range(documents.num_chunks)]
        policy = legolink(documents.link_tokens) if documents.link_tokens else nothing
        made = link([*chunks, self._ids(documents.fresh_tokens)], policy, self._page_size)
        private = free.take(made.num_private_pages)
        bound = bind(made, [list(pages) for pages in chunk_pages], private, self._page_size)
        return _all_of(linked_sequence(made, bound))

    def _whole_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)

    def _document_pages(self, documents: Documents) -> int:
        return documents.num_chunks * self._whole_pages(documents.chunk_tokens)

    def _pages_of(self, documents: Documents) -> int:
        """Pages that hold any of these requests: its chunks', and its own."""
        heads = documents.num_chunks * self._whole_pages(documents.link_tokens)
        tail = documents.fresh_tokens // self._page_size + 2
        return self._document_pages(documents) + heads + tail

    def _ids(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self._random.integers(0, self._vocab_size, num_tokens).tolist())


class _Pages:
    """Page numbers in a random order, given out one after another."""

    def __init__(self, random: np.random.Generator, total: int) -> None:
        self.total = total
        self._left: list[int] = random.permutation(total).tolist()

    def take(self, count: int) -> list[int]:
        return [self._left.pop() for _ in range(count)]


def _all_of(sequence: TokenSequence) -> Piece:
    return sequence.next(sequence.num_left)


def attention_work(maker: WorkMaker, sizes: WorkSizes) -> list[Work]:
    """One layer's steps, those that say the most first."""
    most, many = max(sizes.num_requests), sizes.many
    one = [maker.decode(documents) for documents in sizes.decodes]
    return [
        *(maker.link(documents) for documents in sizes.links),
        *one,
        maker.link_beside_decodes(many, most - 1),
        maker.chunk_beside_decode(many, sizes.beside_tokens),
        maker.padded(maker.decode(many)),
        *(maker.decode(many, number, shared=True) for number in sizes.num_requests),
        maker.padded(maker.decode(many, most, shared=True)),
        *(maker.compile(num_tokens) for num_tokens in sizes.compiles),
        *(maker.decode(many, number) for number in sizes.num_requests),
    ]


def product_work(maker: WorkMaker, sizes: WorkSizes) -> list[Work]:
    """Steps of the whole model: a compile, a link over all documents, decodes on shared ones."""
    return [
        maker.compile(max(sizes.compiles)),
        maker.link(sizes.many),
        maker.decode(sizes.many),
        *(maker.decode(sizes.many, number, shared=True) for number in sizes.num_requests),
    ]

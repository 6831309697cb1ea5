"""The engine's weights over a page pool of the benchmark's own, where a whole prompt is one step.

The product's own linking and attention; new is only that many rows' logits can be asked for, that
a method may look into a step (`Watch`), and that any policy may be given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reuse.prompt import TokenIds
from legokv.built.folder import read_engine_folder
from legokv.checkpoint import load_weights
from legokv.chunks.chunk import Chunk
from legokv.chunks.pool import PagePool
from legokv.link.link import BoundLink, Link, Segment, bind, link
from legokv.link.policy import Policy, nothing
from legokv.model.decoder import Attention, Decoder, decoder_from_weights
from legokv.runners.attention_forms import attention_form, rotations_of
from legokv.runners.packed_weights import pack_decoder
from legokv.runners.page_store import PageStore
from legokv.step.batch import StepBatch, step_batch
from legokv.step.graph import graph_shape
from legokv.step.sequence import linked_sequence
from legokv.text.tokenizer import Tokenizer

Watch = Callable[[Attention], Attention]
"""Put around a step's attention; what it returns is called once a layer."""


@dataclass(frozen=True)
class Placed:
    """A link with its page numbers, ready to be computed or already computed."""

    link: Link
    bound: BoundLink
    private_pages: tuple[int, ...]


class LinkedModel:
    """Chunks stay in the pool until `clear`, so that all methods of a case read the same KV."""

    def __init__(self, folder: Path, dtype: str, attention: str, pool_tokens: int) -> None:
        self.facts = replace(read_engine_folder(folder), dtype=dtype)
        self.tokenizer = Tokenizer.open(folder)
        config = self.facts.model
        torch_dtype = getattr(torch, dtype)
        self.decoder: Decoder = decoder_from_weights(
            config, load_weights(folder, config, torch_dtype)
        )
        pack_decoder(self.decoder)
        self.rotations = rotations_of(config)
        self.page_size = self.facts.page_size
        self._form = attention_form(attention, config, torch_dtype)
        num_pages = pool_tokens // self.page_size
        graph = graph_shape(config, dtype, self.page_size)
        self._store = PageStore(graph, num_pages, torch.device("cpu"))
        self._pool = PagePool(num_pages, self.page_size)
        self._compiled: dict[str, list[int]] = {}

    @property
    def attention(self) -> str:
        """Which form of attention computes the steps."""
        return self._form.description

    @property
    def pools(self) -> list[Tensor]:
        return self._store.pools

    def clear(self) -> None:
        """Forget all chunks."""
        for pages in self._compiled.values():
            self._pool.give_back(pages)
        self._compiled.clear()

    def compile(self, token_ids: TokenIds, before: TokenIds = ()) -> Chunk:
        """A chunk computed from position 0, or behind the tokens `before`, whose KV is dropped."""
        chunk = Chunk(f"{before}{token_ids}", "", token_ids, dummy_tokens=len(before))
        if chunk.key not in self._compiled:
            ahead = [self.compile(before)] if before else []
            # Fresh tokens begin a page of their own, so their pages are the chunk's.
            placed = self.place([*ahead, token_ids], nothing)
            self.compute(placed)
            self._compiled[chunk.key] = list(placed.private_pages)
        return chunk

    def place(self, segments: Sequence[Segment], policy: Policy, reserve_tokens: int = 0) -> Placed:
        """Link compiled chunks and fresh tokens; `release` gives its private pages back."""
        linked = link(segments, policy, self.page_size, reserve_tokens)
        private = self._pool.take(linked.num_private_pages)
        chunk_pages = [self._compiled[chunk.key] for chunk in linked.chunks]
        bound = bind(linked, chunk_pages, private, self.page_size)
        self._store.copy_pages(bound.copy_sources, bound.copy_targets)
        return Placed(linked, bound, tuple(private))

    def release(self, placed: Placed) -> None:
        self._pool.give_back(placed.private_pages)

    def compute(self, placed: Placed, num_rows: int = 1, watch: Watch | None = None) -> Tensor:
        """Logits float32 [num_rows, V] of the last tokens of the prompt."""
        batch = self.batch_of(placed)
        rows = torch.arange(len(batch.input_ids) - num_rows, len(batch.input_ids))
        return self.forward(replace(batch, logit_rows=rows.int().numpy()), watch)

    def batch_of(self, placed: Placed) -> StepBatch:
        sequence = linked_sequence(placed.link, placed.bound)
        return step_batch([sequence.next(sequence.num_left)])

    @torch.inference_mode()
    def forward(self, batch: StepBatch, watch: Watch | None = None) -> Tensor:
        """Logits of the batch's `logit_rows`."""
        with self._form.step(batch, self.pools) as attend:
            logits: Tensor = self.decoder(
                torch.from_numpy(batch.input_ids),
                torch.from_numpy(batch.logit_rows),
                self.pools,
                attend if watch is None else watch(attend),
            )[0]
        return logits

    @torch.inference_mode()
    def first_layer(self, batch: StepBatch) -> Tensor:
        """What layer 1 reads, [T, hidden]: all tokens of the batch through layer 0."""
        with self._form.step(batch, self.pools) as attend:
            x = self.decoder.embed(torch.from_numpy(batch.input_ids))
            after: Tensor = self.decoder.layers[0](x, self.pools[0], attend)[0]
        return after

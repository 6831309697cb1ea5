"""The product's runner over a page pool of the benchmark's own, where a whole prompt is one step.

New is only that many rows' logits can be asked for, that a method may look into a step (`Watch`),
and that any policy may be given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reuse.prompt import TokenIds
from legokv.built.folder import read_engine_folder
from legokv.checkpoint.weights import load_kept_weights
from legokv.chunks.chunk import Chunk
from legokv.chunks.pool import PagePool
from legokv.link.link import BoundLink, Link, Placement, Segment, bind, place
from legokv.model.config import ModelConfig
from legokv.model.decoder import Attention
from legokv.runners.attention_forms import AttentionForm, attention_form, rotations_of
from legokv.runners.eager import EagerRunner
from legokv.runners.key_mass import KeyMass
from legokv.step.batch import StepBatch, step_batch
from legokv.step.sequence import CompiledPages, TokenSequence, chunk_sequence, linked_sequence
from legokv.text.tokenizer import Tokenizer

Watch = Callable[[Attention], Attention]
"""Put around a step's attention; what it returns is called once a layer."""


@dataclass(frozen=True)
class Placed:
    """A link with its page numbers, ready to be computed or already computed."""

    link: Link
    bound: BoundLink
    private_pages: tuple[int, ...]

    @property
    def sequence(self) -> TokenSequence:
        """What is computed of it."""
        return linked_sequence(self.link, self.bound)


class WatchedForm:
    """A form of attention whose steps go through `watch` while there is one."""

    def __init__(self, form: AttentionForm) -> None:
        self.description, self.library = form.description, form.library
        self.import_kv, self.copy_pages, self.drift = form.import_kv, form.copy_pages, form.drift
        self.watch: Watch | None = None
        self._form = form

    @contextmanager
    def step(
        self, batch: StepBatch, pools: Sequence[Tensor], mass: KeyMass | None = None
    ) -> Iterator[Attention]:
        with self._form.step(batch, pools, mass) as attend:
            yield attend if self.watch is None else self.watch(attend)


class LinkedModel:
    """Chunks stay in the pool until `clear`, so that all methods of a case read the same KV.

    `weights`: their form; None is the engine folder's own.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        attention: str,
        pool_tokens: int,
        weights: str | None = None,
    ) -> None:
        facts = read_engine_folder(folder)
        self.facts = replace(facts, dtype=dtype, weights=weights or facts.weights)
        self.tokenizer = Tokenizer.open(folder)
        self.page_size = self.facts.page_size
        config, torch_dtype = self.facts.model, getattr(torch, dtype)
        self.rotations = rotations_of(config)
        self._form = WatchedForm(attention_form(attention, config, torch_dtype))
        self._pool = PagePool(pool_tokens // self.page_size, self.page_size)
        self.runner = EagerRunner(
            config,
            load_kept_weights(folder, config, torch_dtype, self.facts.weights),
            self._form,
            num_pages=self._pool.num_pages,
            page_size=self.page_size,
        )
        self._compiled: dict[str, list[int]] = {}

    @property
    def attention(self) -> str:
        """Which form of attention computes the steps."""
        return self._form.description

    @property
    def pools(self) -> list[Tensor]:
        return self.runner.pools

    def clear(self) -> None:
        """Forget all chunks."""
        for pages in self._compiled.values():
            self._pool.give_back(pages)
        self._compiled.clear()

    def compile(self, token_ids: TokenIds, before: TokenIds = ()) -> Chunk:
        """A chunk computed from position 0, or behind the tokens `before`."""
        behind = self.compile(before) if before else None
        return self.compile_behind(token_ids, behind)

    def compile_behind(self, token_ids: TokenIds, behind: Chunk | None) -> Chunk:
        """A chunk computed behind another, and all that this was computed behind."""
        key = f"{'' if behind is None else behind.key}{token_ids}"
        chunk = Chunk(key, "", token_ids, behind=behind)
        if key not in self._compiled:
            pages = self._pool.take(self._pool.pages_for(len(token_ids)))
            before = [
                CompiledPages(part.start, part.num_tokens, self._compiled[part.key])
                for part in chunk.before
            ]
            self.runner.run(_batch(chunk_sequence(token_ids, pages, self.page_size, before)))
            self._compiled[key] = pages
        return chunk

    @property
    def config(self) -> ModelConfig:
        return self.facts.model

    def pages_of(self, chunk: Chunk) -> list[int]:
        """Where a compiled chunk lies in the pools."""
        return self._compiled[chunk.key]

    def keys_of(self, chunk: Chunk) -> Tensor:
        """A compiled chunk's keys as they are stored, [L, n, G, D]."""
        return self.runner.export_pages(self.pages_of(chunk), chunk.num_tokens)[:, 0]

    def place(self, segments: Sequence[Segment], reserve_tokens: int = 0) -> Placement:
        """Compiled chunks and fresh tokens as one prompt, before a policy has chosen."""
        return place(segments, self.page_size, reserve_tokens)

    def bind(self, linked: Link) -> Placed:
        """A link with pages of its own; `release` gives them back."""
        private = self._pool.take(linked.num_private_pages)
        chunk_pages = [self._compiled[chunk.key] for chunk in linked.chunks]
        bound = bind(linked, chunk_pages, private, self.page_size)
        self.runner.copy_pages(bound.copy_sources, bound.copy_targets)
        return Placed(linked, bound, tuple(private))

    def release(self, placed: Placed) -> None:
        self._pool.give_back(placed.private_pages)

    def compute(self, placed: Placed, num_rows: int = 1, watch: Watch | None = None) -> Tensor:
        """Logits float32 [num_rows, V] of the last tokens of the prompt."""
        batch = self.batch_of(placed)
        rows = torch.arange(len(batch.input_ids) - num_rows, len(batch.input_ids))
        self._form.watch = watch
        try:
            return self.runner.run(replace(batch, logit_rows=rows.int().numpy())).float()
        finally:
            self._form.watch = None

    def batch_of(self, placed: Placed) -> StepBatch:
        return _batch(placed.sequence)


def _batch(sequence: TokenSequence) -> StepBatch:
    return step_batch([sequence.next(sequence.num_left)])

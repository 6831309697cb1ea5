"""Runs a compiled plan over tensors set aside once; a pool is its input and its output."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from legokv.built.plan_facts import PlanFacts
from legokv.built.plan_limits import DECODE, PREFILL, profile_number
from legokv.runners.page_store import PageStore
from legokv.runners.plan.buffers import ArrivingPages, StepBuffers, largest, view_of
from legokv.runners.plan.session import PlanSession
from legokv.step.batch import StepBatch
from legokv.step.graph import GraphShape, batch_sizes, step_arrays


class TensorRTRunner:
    """A runner over an opened plan. Its tensors lie on `device`, at one place for ever."""

    gives_attention = False

    def __init__(
        self,
        session: PlanSession,
        plan: PlanFacts,
        graph: GraphShape,
        num_pages: int,
        device: torch.device,
    ) -> None:
        self.num_pages, self.page_size, self.device = num_pages, graph.page_size, device
        self._session, self._plan, self._graph = session, plan, graph
        self._store = PageStore(graph, num_pages, device)
        self._arriving = ArrivingPages(graph, self._store, plan.limits.max_import_pages)
        self._buffers = StepBuffers(plan.profiles, device)
        logits = graph.outputs[0]
        self._logits = torch.zeros(
            largest(logits, plan.profiles), dtype=torch.float32, device=device
        )
        self._pools = dict(zip((b.name for b in graph.pools), self._store.pools, strict=True))

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        parts = split_batch(batch, self._plan.profiles[PREFILL].ranges["B"].most)
        return torch.cat([self._run(part) for part in parts])

    def _run(self, batch: StepBatch) -> Tensor:
        sizes = batch_sizes(batch, self._arriving.num_pages, self.num_pages)
        number = profile_number(self._plan.profiles, sizes)
        if number == DECODE:
            # Few different shapes, so that a decode step finds the CUDA graph of an earlier one.
            most = self._plan.profiles[number].ranges["P"].most
            sizes["P"] = min(1 << (sizes["P"] - 1).bit_length(), most)
        inputs = {
            **self._buffers.load(step_arrays(batch), sizes),
            **self._pools,
            **self._arriving.inputs(),
        }
        outputs = {
            b.name: self._pools[b.alias_of] if b.alias_of else view_of(self._logits, b.sized(sizes))
            for b in self._graph.outputs
        }
        self._session.run(number, inputs, outputs)
        self._arriving.taken()
        return outputs["logits"].to("cpu", copy=True)

    def attention_mass(self, batch: StepBatch, num_rows: int) -> Tensor:
        raise NotImplementedError("a plan's attention gives outputs alone")

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._arriving.put_in_pools()
        self._store.copy_pages(sources, targets)

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        self._arriving.add(pages, kv)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        self._arriving.put_in_pools()
        return self._store.export_pages(pages, num_tokens)


def split_batch(batch: StepBatch, max_sequences: int) -> Iterator[StepBatch]:
    """Batches of at most `max_sequences`, whose logits in turn are the batch's; itself if it fits.

    Sequences of one step do not read what the others write, so they may follow one another.
    """
    num_sequences = len(batch.logit_rows)
    if num_sequences <= max_sequences:
        yield batch
        return
    for first in range(0, num_sequences, max_sequences):
        yield _part(batch, slice(first, min(first + max_sequences, num_sequences)))


def _part(batch: StepBatch, sequences: slice) -> StepBatch:
    starts = batch.query_start[sequences.start : sequences.stop + 1]
    tokens = slice(starts[0], starts[-1])
    return StepBatch(
        input_ids=batch.input_ids[tokens],
        positions=batch.positions[tokens],
        key_positions=batch.key_positions[tokens],
        slots=batch.slots[tokens],
        query_start=starts - starts[0],
        pages=batch.pages[sequences],
        logit_rows=batch.logit_rows[sequences] - starts[0],
    )

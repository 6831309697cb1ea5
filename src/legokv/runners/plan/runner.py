"""Runs a compiled plan over tensors set aside once; a pool is its input and its output."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from legokv.built.plan_facts import PlanFacts
from legokv.built.plan_limits import DECODE, LINK, PREFILL, Profile, filled_up, profile_number
from legokv.errors import EngineMismatch, InvalidRequest, LegokvError, StepFailed
from legokv.kernels.native_library import NativeLibrary
from legokv.model.dtypes import Int32
from legokv.runners.key_mass import KeyMass
from legokv.runners.page_store import PageStore
from legokv.runners.plan.buffers import ArrivingPages, StepBuffers, largest, view_of
from legokv.runners.plan.contexts import PlanSession
from legokv.step.batch import StepBatch
from legokv.step.graph import SCORING, GraphShape, ScoringShape, batch_sizes, step_arrays


@dataclass(frozen=True)
class ScoringPlan:
    """The plan of the scoring pass: of one profile, that holds steps of one sequence.

    open: makes it ready to run. OutOfMemory, if there is no room for it now.
    """

    open: Callable[[], PlanSession]
    shape: ScoringShape
    profile: Profile
    num_heads: int


class ScoringPass:
    """The scoring plan over a runner's pools and tables, opened for the first step that asks.

    Its weights are the first layers' once more, so that only who asks pays for them.
    """

    def __init__(self, plan: ScoringPlan, store: PageStore, buffers: StepBuffers) -> None:
        self._plan, self._store, self._buffers = plan, store, buffers
        self._pools = {b.name: pool for b, pool in zip(plan.shape.pools, store.pools, strict=False)}
        self._rows = torch.zeros(1, dtype=torch.int32, device=store.device)
        self._session: PlanSession | None = None
        self._refusal: str | None = None

    def mass(self, batch: StepBatch, num_rows: int) -> Tensor:
        """What `Runner.attention_mass` gives; InvalidRequest if the plan can't hold the step."""
        plan, shape, store = self._plan, self._plan.shape, self._store
        sizes = batch_sizes(batch, 0, store.num_pages)
        excess = plan.profile.excess(sizes)
        if excess is not None:
            raise InvalidRequest(
                "a request's fresh tokens are one step of the scoring plan, which can't run it: "
                f"{excess}; build it with more, or take a mode without 'guided'"
            )
        session = self._opened()
        self._rows.fill_(num_rows)
        held = {**self._buffers.load(step_arrays(batch), sizes), SCORING.name: self._rows}
        inputs = {b.name: held[b.name] for b in shape.tables} | self._pools
        outputs = {
            b.name: self._pools[b.alias_of] if b.alias_of else view_of(self._mass, b.sized(sizes))
            for b in shape.outputs
        }
        mass = KeyMass(batch, num_rows, shape.layers, store.page_size, store.device)
        with store.step(batch):
            session.run(PREFILL, inputs, outputs)
        mass.add(view_of(self._mass, shape.outputs[0].sized(sizes)))
        return mass.mean(plan.num_heads)

    def _opened(self) -> PlanSession:
        """The session. What failed once is not tried again: it would hold up each step."""
        if self._refusal is not None:
            raise StepFailed(self._refusal)
        if self._session is None:
            size = largest(self._plan.shape.outputs[0], [self._plan.profile])
            try:
                session = self._plan.open()
                self._mass = torch.zeros(size, dtype=torch.float32, device=self._store.device)
            except (EngineMismatch, torch.OutOfMemoryError) as error:
                self._refusal = (
                    "the plan of the scoring pass did not open, and modes with 'guided' are "
                    f"refused until the engine is opened again: {error}"
                )
                raise StepFailed(self._refusal) from error
            self._session = session
        return self._session


class TensorRTRunner:
    """A runner over an opened plan. Its tensors lie on one device, at one place for ever.

    A `scoring` plan reads the same pools and tables: with one, it has an `attention_mass`. A text
    says why there is none, as `no_attention` does.
    """

    gives_drift = False
    drawing: NativeLibrary | None = None
    lost: LegokvError | None = None

    def __init__(
        self,
        session: PlanSession,
        plan: PlanFacts,
        graph: GraphShape,
        store: PageStore,
        scoring: ScoringPlan | str = "which its plan does not say: take a mode without 'guided'",
    ) -> None:
        device = store.device
        self.description = f"a plan of {plan.flavour} {plan.version}"
        self.no_attention = scoring if isinstance(scoring, str) else None
        self.num_pages, self.page_size, self.device = store.num_pages, graph.page_size, device
        self._session, self._plan, self._graph = session, plan, graph
        self._store = store
        # Where the graph has no inputs for them, pages go into the pools by the store at once.
        most = plan.limits.max_import_pages if graph.arriving else 0
        self._arriving = ArrivingPages(graph, store, most)
        self._buffers = StepBuffers(plan.profiles, device)
        logits = graph.outputs[0]
        self._logits = torch.zeros(
            largest(logits, plan.profiles), dtype=torch.float32, device=device
        )
        self._pools = dict(zip((b.name for b in graph.pools), self._store.pools, strict=True))
        self._scoring = (
            None if isinstance(scoring, str) else ScoringPass(scoring, store, self._buffers)
        )

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        if batch.drifts:
            num = len(batch.drifts)
            raise StepFailed(
                f"a plan moves no stored keys and values, and {num} chunk{'s' * (num > 1)} of this "
                "step drift: take a mode without 'drift', or open the engine with another runner"
            )
        parts = split_batch(batch, self._plan.profiles[PREFILL].ranges["B"].most)
        return torch.cat([self._run(part) for part in parts])

    def _run(self, batch: StepBatch) -> Tensor:
        num_sequences = len(batch.logit_rows)
        sizes = batch_sizes(batch, self._arriving.num_pages, self.num_pages)
        number = profile_number(self._plan.profiles, sizes)
        if number in (DECODE, LINK):
            # Few different shapes, so that a step finds the CUDA graph of an earlier one.
            ranges = self._plan.profiles[number].ranges
            sizes["P"] = min(1 << (sizes["P"] - 1).bit_length(), ranges["P"].most)
            sizes["B"] = min(padded_sequences(num_sequences), ranges["B"].most)
            sizes["T"] = sizes["B"] if number == DECODE else filled_up(sizes["T"])
            batch = with_idle_sequences(batch, sizes["T"], sizes["B"])
        inputs = {
            **self._buffers.load(step_arrays(batch), sizes),
            **self._pools,
            **self._arriving.inputs(),
        }
        outputs = {
            b.name: self._pools[b.alias_of] if b.alias_of else view_of(self._logits, b.sized(sizes))
            for b in self._graph.outputs
        }
        with self._store.step(batch):
            self._session.run(number, inputs, outputs)
        self._arriving.taken()
        # The next run writes to the same place.
        return outputs["logits"][:num_sequences].clone()

    @torch.inference_mode()
    def attention_mass(self, batch: StepBatch, num_rows: int) -> Tensor:
        if self._scoring is None:
            raise NotImplementedError(self.no_attention)
        # Its graph has no nodes for pages that arrive.
        self._arriving.put_in_pools()
        return self._scoring.mass(batch, num_rows)

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._arriving.put_in_pools()
        self._store.copy_pages(sources, targets)

    @torch.inference_mode()
    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        self._arriving.add(pages, kv)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        self._arriving.put_in_pools()
        return self._store.export_pages(pages, num_tokens)


def padded_sequences(num_sequences: int) -> int:
    """The next of 1, 2, 4, 8, 16, 24, 32, 48, 64, 80, …: what a step is filled up to."""
    if num_sequences <= 8:
        return 1 << (num_sequences - 1).bit_length()
    step = 8 if num_sequences <= 32 else 16
    return -(-num_sequences // step) * step


def with_idle_sequences(batch: StepBatch, num_tokens: int, num_sequences: int) -> StepBatch:
    """A batch filled up with tokens and sequences that see and write nothing.

    Each idle sequence has one of the tokens as far as they go; others lie behind the last.
    """
    used, idle_tokens = len(batch.input_ids), num_tokens - len(batch.input_ids)
    idle_sequences = num_sequences - len(batch.logit_rows)

    def filled(array: Int32, num_idle: int, value: int = 0) -> Int32:
        widths = [(0, num_idle), *[(0, 0)] * (array.ndim - 1)]
        return np.pad(array, widths, constant_values=value)

    ends = used + np.arange(1, idle_sequences + 1, dtype=np.int32)
    return StepBatch(
        input_ids=filled(batch.input_ids, idle_tokens),
        positions=filled(batch.positions, idle_tokens),
        key_positions=filled(batch.key_positions, idle_tokens),
        slots=filled(batch.slots, idle_tokens, -1),
        query_start=np.concatenate([batch.query_start, np.minimum(ends, num_tokens)]),
        pages=filled(batch.pages, idle_sequences),
        logit_rows=filled(batch.logit_rows, idle_sequences),
    )


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

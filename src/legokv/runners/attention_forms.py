"""The forms of attention, behind one protocol, and the choice among those that a CPU has."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from legokv.built.settings import AttentionName, FormName
from legokv.errors import InvalidRequest, NativeLibraryMissing
from legokv.kernels.build_cpu import build_native_library, find_native_library
from legokv.kernels.cpu import NativeCalls, NativeStep, StepBefore, StepShape
from legokv.kernels.fastest import able_forms, measured_forms, measured_threads
from legokv.kernels.gpu import (
    INDEX_TABLES,
    AttentionTables,
    Launchers,
    SharedTables,
    attention_arguments,
)
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.model.config import ModelConfig
from legokv.model.decoder import Attention
from legokv.model.rope import layer_frequencies, layer_scale
from legokv.ops.attention_tiles import StepTables, step_tables
from legokv.ops.drift import DriftTables, drift_in_place
from legokv.ops.kv_import import copy_pages, import_stored
from legokv.ops.paged_attention import attend_in_place
from legokv.runners.key_mass import KeyMass, scored_by_torch
from legokv.runners.page_store import Import
from legokv.step.batch import StepBatch

CPU = torch.device("cpu")
T = TypeVar("T")

log = logging.getLogger(__name__)


class AttentionForm(Protocol):
    """One way to do the two ops in place; `description` says which, for logs and reports.

    `library` is the CPU library that it uses, if it does.
    """

    description: str
    library: NativeLibrary | None

    def step(
        self, batch: StepBatch, pools: Sequence[Tensor], mass: KeyMass | None = None
    ) -> AbstractContextManager[Attention]:
        """The attention of a step's layers, over pools [N, 2, S, G, D] all of one shape.

        `mass` gets what its layers attend to.
        """

    def import_kv(self, pools: Tensor, kv: Tensor, pages: Tensor) -> None:
        """Put stored kv [L, 2, n, G, D] over `pages` int32 [M] of `pools` [L, N, 2, S, G, D]."""

    def copy_pages(self, pools: Tensor, sources: Tensor, targets: Tensor) -> None:
        """Copy pages int32 [M] in each of pools [L, N, 2, S, G, D]; no target is a source."""

    def drift(self, pool: Tensor, k: Tensor, v: Tensor, tables: DriftTables) -> None:
        """Move documents in `pool` by a step's k and v [T, G, D], which are not rotated."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """What a kind of layer needs besides a step: inv_freq float32 [D / 2], score scale."""

    inv_freq: Tensor
    scale: float


def rotations_of(config: ModelConfig, device: torch.device = CPU) -> tuple[Rotation, ...]:
    """The rotation of each layer; layers of one kind have the same object."""
    made = {
        kind: Rotation(
            torch.tensor(layer_frequencies(kind, config), dtype=torch.float32, device=device),
            layer_scale(kind, config),
        )
        for kind in dict.fromkeys(config.layers)
    }
    return tuple(made[kind] for kind in config.layers)


def by_layer(rotations: Sequence[Rotation], make: Callable[[Rotation], T]) -> list[T]:
    """For each layer what `make` makes of its rotation, called once for layers that share one."""
    made = {rotation: make(rotation) for rotation in dict.fromkeys(rotations)}
    return [made[rotation] for rotation in rotations]


def index_tables(batch: StepBatch, device: torch.device = CPU) -> dict[str, Tensor]:
    """The tables of a batch that attention reads, by name; on a CPU they share its memory."""
    return {name: torch.from_numpy(getattr(batch, name)).to(device) for name in INDEX_TABLES}


def attention_tables(
    index: dict[str, Tensor], rotation: Rotation, shared: SharedTables | None = None
) -> AttentionTables:
    """What the launchers read of a step in layers of one kind, all on one device."""
    return AttentionTables(**index, inv_freq=rotation.inv_freq, scale=rotation.scale, shared=shared)


class TorchForm:
    """Pages gathered, tiles by torch's fused attention."""

    description = "torch"
    library: NativeLibrary | None = None

    def __init__(self, config: ModelConfig) -> None:
        self._rotations = rotations_of(config)

    @contextmanager
    def step(
        self, batch: StepBatch, pools: Sequence[Tensor], mass: KeyMass | None = None
    ) -> Iterator[Attention]:
        index, page_size, dtype = index_tables(batch), pools[0].shape[2], pools[0].dtype

        def tiles(rotation: Rotation) -> StepTables:
            inv_freq = rotation.inv_freq
            return step_tables(**index, inv_freq=inv_freq, page_size=page_size, dtype=dtype)

        tables = by_layer(self._rotations, tiles)

        def attend(
            layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
        ) -> tuple[Tensor, Tensor]:
            scale = self._rotations[layer].scale
            return attend_in_place(q, k, v, pool, tables[layer], scale), pool

        by_rotation = by_layer(self._rotations, partial(attention_tables, index))
        yield scored_by_torch(attend, mass, by_rotation)

    def import_kv(self, pools: Tensor, kv: Tensor, pages: Tensor) -> None:
        import_stored(pools, kv, pages)

    def copy_pages(self, pools: Tensor, sources: Tensor, targets: Tensor) -> None:
        copy_pages(pools, sources, targets)

    def drift(self, pool: Tensor, k: Tensor, v: Tensor, tables: DriftTables) -> None:
        drift_in_place(pool, k, v, tables)


class NativeForm:
    """The CPU library: pages read where they lie, by the processor's best instructions."""

    def __init__(
        self,
        calls: NativeCalls,
        config: ModelConfig,
        dtype: torch.dtype,
        instruction_set: InstructionSet = InstructionSet.BEST,
    ) -> None:
        if config.head_size % 16:
            raise InvalidRequest(
                f"the native attention has no head size {config.head_size}, only multiples of 16: "
                "choose attention 'torch'"
            )
        self.instruction_set = instruction_set or calls.best(dtype)
        self.description = f"native, {self.instruction_set.name.lower()}"
        self.library: NativeLibrary | None = calls.library
        self.calls = calls
        self._rotations = rotations_of(config)
        self._before = {rotation: StepBefore() for rotation in self._rotations}
        self._num_heads = config.num_heads

    @contextmanager
    def step(
        self, batch: StepBatch, pools: Sequence[Tensor], mass: KeyMass | None = None
    ) -> Iterator[Attention]:
        num_pages, _, page_size, num_kv_heads, head_size = pools[0].shape
        shape = StepShape(
            num_pages, page_size, self._num_heads, num_kv_heads, head_size, pools[0].dtype
        )
        index, num_threads = index_tables(batch), torch.get_num_threads()
        with ExitStack() as stack:

            def begin(rotation: Rotation) -> NativeStep:
                tables = attention_tables(index, rotation)
                step = self.calls.step(
                    tables,
                    shape,
                    num_threads=num_threads,
                    instruction_set=self.instruction_set,
                    scoring=None if mass is None else mass.scoring,
                    before=None if mass is not None else self._before[rotation],
                )
                return stack.enter_context(step)

            begun = by_layer(self._rotations, begin)

            def attend(
                layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
            ) -> tuple[Tensor, Tensor]:
                if mass is None or layer not in mass.layers:
                    return begun[layer].attend(q, k, v, pool), pool
                out = begun[layer].attend(q, k, v, pool, mass.one)
                mass.add(mass.one)
                return out, pool

            yield attend

    def import_kv(self, pools: Tensor, kv: Tensor, pages: Tensor) -> None:
        self.calls.import_kv(pools, kv, pages, num_threads=torch.get_num_threads())

    def copy_pages(self, pools: Tensor, sources: Tensor, targets: Tensor) -> None:
        self.calls.copy_pages(pools, sources, targets)

    def drift(self, pool: Tensor, k: Tensor, v: Tensor, tables: DriftTables) -> None:
        self.calls.drift(pool, k, v, tables, self.instruction_set)


class KernelForm:
    """The plugins' own kernels on `device`: a CUDA one, or the CPU for their host form.

    What several sequences of a step see is read once for tiles of their rows, where that is worth
    it: by their page tables alone, so a chunk counts wherever it stands.

    LaunchRefused at the first step if the library has no kernel for the model's sizes.
    """

    def __init__(self, launchers: Launchers, config: ModelConfig, device: torch.device) -> None:
        self.description = f"kernels, {device.type}"
        self.library: NativeLibrary | None = None
        self._launchers = launchers
        self._rotations = rotations_of(config, device)
        self._num_heads = config.num_heads
        self._workspace = torch.empty(0, dtype=torch.uint8, device=device)

    @contextmanager
    def step(
        self, batch: StepBatch, pools: Sequence[Tensor], mass: KeyMass | None = None
    ) -> Iterator[Attention]:
        index, shared = self._listed(batch, pools[0], shares=mass is None)
        tables = by_layer(self._rotations, partial(attention_tables, index, shared=shared))

        def attend(
            layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
        ) -> tuple[Tensor, Tensor]:
            arguments = attention_arguments(q, k, v, pool, tables[layer])
            # Contiguous, whatever q is a part of.
            out = q.new_empty(q.shape)
            if mass is not None and layer in mass.layers:
                workspace = self._workspace_of(self._launchers.scored_workspace_bytes(arguments))
                one = mass.one
                self._launchers.scored_attention(
                    arguments, out, (mass.scoring, one), workspace, self._stream()
                )
                mass.add(one)
                return out, pool
            workspace = self._workspace_of(self._launchers.workspace_bytes(arguments))
            self._launchers.legolink_attention(arguments, out, workspace, self._stream())
            return out, pool

        yield attend

    def _listed(
        self, batch: StepBatch, pool: Tensor, *, shares: bool
    ) -> tuple[dict[str, Tensor], SharedTables | None]:
        """The step's tables on the device, and what is shared.

        Shared pages are no sequence's own: they have no slots for a mass. float32 has no kernel.
        """
        index, shared = index_tables(batch), None
        if shares and pool.dtype != torch.float32 and len(batch.pages) > 1:
            listed = self._launchers.list_shared(index, self._num_heads, pool)
            if listed is not None:
                index["pages"], shared = listed
        device = self._workspace.device
        return {name: table.to(device) for name, table in index.items()}, shared

    def import_kv(self, pools: Tensor, kv: Tensor, pages: Tensor) -> None:
        self._launchers.import_kv(pools, kv, pages, stream_of(pools.device))

    def copy_pages(self, pools: Tensor, sources: Tensor, targets: Tensor) -> None:
        copy_pages(pools, sources, targets)

    def drift(self, pool: Tensor, k: Tensor, v: Tensor, tables: DriftTables) -> None:
        drift_in_place(pool, k, v, tables)

    def _workspace_of(self, num_bytes: int) -> Tensor:
        """One workspace for all layers: they follow each other on one stream."""
        if num_bytes > self._workspace.numel():
            self._workspace = self._workspace.new_empty(num_bytes)
        return self._workspace

    def _stream(self) -> int:
        return stream_of(self._workspace.device)


def stream_of(device: torch.device) -> int:
    """The handle of the stream that torch's own work on `device` goes to; a CPU has none."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def importing(launchers: Launchers) -> Import:
    """An import into the pools of all layers by one launch, on the stream of torch's own work."""

    def import_kv(pools: Tensor, kv: Tensor, pages: Tensor) -> None:
        launchers.import_kv(pools, kv, pages, stream_of(pools.device))

    return import_kv


def attention_form(
    requested: AttentionName, config: ModelConfig, dtype: torch.dtype
) -> AttentionForm:
    """The form that `requested` names; the log says which and why.

    "native" compiles the library if need be, and raises what keeps it from that, as does the name
    of one of its builds. "auto" takes it if it is there, compiled from the present sources, and the
    torch form if not.
    """
    form: AttentionForm
    if requested == "auto":
        return _present_form(config, dtype)
    if requested == "torch":
        form = TorchForm(config)
    elif requested == "native":
        form = _fastest_form(build_native_library(log.info), config, dtype)
    else:
        form = _named_form(requested, config, dtype)
    log.info("attention: %s, as asked", form.description)
    return form


def set_threads(form: NativeForm, dtype: torch.dtype) -> None:
    """Have torch and the library compute on as many threads as are fastest here, and log it."""
    milliseconds = measured_threads(form.calls, dtype, form.instruction_set)
    number = next(iter(milliseconds))
    figures = ", ".join(f"on {count} {value}" for count, value in milliseconds.items())
    if len(milliseconds) == 1:
        figures = "not measured, as there is one thread or the machine is busy"
    log.info("threads: %d; milliseconds of small layers: %s", number, figures)
    torch.set_num_threads(number)


def _present_form(config: ModelConfig, dtype: torch.dtype) -> AttentionForm:
    try:
        form = _fastest_form(find_native_library(), config, dtype)
    except (NativeLibraryMissing, InvalidRequest) as error:
        log.warning("attention: torch, the slower form, since %s", error)
        return TorchForm(config)
    log.info("attention: %s", form.description)
    return form


def _named_form(name: FormName, config: ModelConfig, dtype: torch.dtype) -> NativeForm:
    """InvalidRequest where the processor, the compiler or `dtype` has no such build."""
    calls = NativeCalls(NativeLibrary(build_native_library(log.info)))
    able = able_forms(calls, dtype)
    if InstructionSet[name.upper()] not in able:
        others = ", ".join(each.name.lower() for each in able)
        raise InvalidRequest(
            f"the native attention has no {name} for {str(dtype)[6:]} on this machine, only "
            f"{others}: choose one of these, or auto"
        )
    return NativeForm(calls, config, dtype, InstructionSet[name.upper()])


def _fastest_form(library: Path, config: ModelConfig, dtype: torch.dtype) -> NativeForm:
    calls = NativeCalls(NativeLibrary(library))
    milliseconds = measured_forms(calls, dtype)
    figures = ", ".join(f"{each.name.lower()} {value}" for each, value in milliseconds.items())
    log.info("native attention, milliseconds of a small layer: %s", figures)
    return NativeForm(calls, config, dtype, next(iter(milliseconds)))

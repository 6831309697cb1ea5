"""The CPU library's two operations, called with tensors' addresses."""

import ctypes
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from legokv.errors import LaunchRefused
from legokv.kernels.gpu import (
    DTYPES,
    AttentionTables,
    check_scoring,
    kv_import_arguments,
    stored_import_arguments,
)
from legokv.kernels.gpu_structs import KvImportArguments
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.ops.drift import DriftTables


class StepArguments(ctypes.Structure):
    """LegokvCpuStep of cpu_launchers.h."""

    _fields_ = (
        ("positions", ctypes.c_void_p),
        ("key_positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("query_start", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("inv_freq", ctypes.c_void_p),
        ("scoring", ctypes.c_void_p),
        ("num_pool_pages", ctypes.c_int64),
        ("num_tokens", ctypes.c_int32),
        ("num_sequences", ctypes.c_int32),
        ("num_table_rows", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("page_size", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class LayerArguments(ctypes.Structure):
    """LegokvCpuLayer of cpu_launchers.h."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("mass", ctypes.c_void_p),
        ("q_stride", ctypes.c_int64),
        ("k_stride", ctypes.c_int64),
        ("v_stride", ctypes.c_int64),
    )


class PageCopyArguments(ctypes.Structure):
    """LegokvCpuPageCopy of cpu_launchers.h."""

    _fields_ = (
        ("pools", ctypes.c_void_p),
        ("sources", ctypes.c_void_p),
        ("targets", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("num_pool_pages", ctypes.c_int64),
        ("page_bytes", ctypes.c_int64),
        ("num_pages", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


class DriftArguments(ctypes.Structure):
    """LegokvCpuDrift of cpu_launchers.h."""

    _fields_ = (
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("documents", ctypes.c_void_p),
        ("stored", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("row_turns", ctypes.c_void_p),
        ("page_turns", ctypes.c_void_p),
        ("slot_turns", ctypes.c_void_p),
        ("num_pool_pages", ctypes.c_int64),
        ("k_stride", ctypes.c_int64),
        ("v_stride", ctypes.c_int64),
        ("num_tokens", ctypes.c_int32),
        ("num_documents", ctypes.c_int32),
        ("num_pages", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("page_size", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


@dataclass(frozen=True)
class StepShape:
    """What a step must know of the layers before it meets the first: pools [N, 2, S, G, D]."""

    num_pool_pages: int
    page_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype


class NativeStep:
    """A step that was begun; one thread at a time may use it, until its `with` block ends.

    It is freed by `end`, or when nobody holds it.
    """

    def __init__(
        self,
        library: NativeLibrary,
        begun: int,
        shape: StepShape,
        num_tokens: int,
        mass_shape: tuple[int, ...] | None,
    ) -> None:
        self._attend = library.functions.legokv_cpu_attend
        self._num_keys_read = library.functions.legokv_cpu_num_keys_read
        self._advance = library.functions.legokv_cpu_advance
        self._begun = begun
        self.end = weakref.finalize(self, library.functions.legokv_cpu_end, begun)
        self.library = library
        self._shape = shape
        self._num_tokens = num_tokens
        self._mass_shape = mass_shape
        self.instruction_set = InstructionSet(library.functions.legokv_cpu_instruction_set(begun))

    @property
    def num_keys_read(self) -> int:
        """How many keys each KV head brings to rows in a layer, as often as it brings them.

        Once for all sequences that share a chunk, once for each tile of a longer piece.
        """
        return int(self._num_keys_read(self._begun))

    def advance(self, arguments: StepArguments, shape: StepShape) -> bool:
        """Whether this step, which is over, has become the one that follows it; else `end` it.

        It does where each sequence has one token, as before, and tables only grew by those written:
        then nothing of them is planned anew.
        """
        self._shape = shape
        return bool(self._advance(self._begun, ctypes.byref(arguments)))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, pool: Tensor, mass: Tensor | None = None
    ) -> Tensor:
        """legolink_attention's output [T, H, D], its keys and values written into `pool` itself.

        q, k and v may be parts of a wider tensor: each token's heads one after another, tokens any
        stride apart. `mass` float32 [B, P, S] becomes scored_attention's. LaunchRefused for other
        layouts, dtypes or shapes than the step's, or a mass where the step has no `scoring`.
        """
        if mass is not None:
            self._check_mass(mass)
        shape = self._shape
        pool_shape = (shape.num_pool_pages, 2, shape.page_size, shape.num_kv_heads, shape.head_size)
        if pool.shape != pool_shape or pool.dtype != shape.dtype or not pool.is_contiguous():
            raise LaunchRefused(
                f"the step is for contiguous pools {pool_shape} of {shape.dtype}, this one is "
                f"{tuple(pool.shape)} of {pool.dtype}"
            )
        for name, heads, num_heads in (
            ("q", q, shape.num_heads),
            ("k", k, shape.num_kv_heads),
            ("v", v, shape.num_kv_heads),
        ):
            self._check_heads(name, heads, num_heads)
        out = q.new_empty(q.shape)
        arguments = LayerArguments(
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            pool.data_ptr(),
            out.data_ptr(),
            None if mass is None else mass.data_ptr(),
            q.stride(0),
            k.stride(0),
            v.stride(0),
        )
        self._attend(self._begun, ctypes.byref(arguments))
        return out

    def _check_mass(self, mass: Tensor) -> None:
        if mass.shape != self._mass_shape or mass.dtype != torch.float32:
            raise LaunchRefused(
                f"this step's mass is float32 {self._mass_shape}, not {tuple(mass.shape)} of "
                f"{mass.dtype}"
            )
        if not mass.is_contiguous():
            raise LaunchRefused("the mass is not contiguous")

    def _check_heads(self, name: str, heads: Tensor, num_heads: int) -> None:
        size = self._shape.head_size
        if heads.shape != (self._num_tokens, num_heads, size) or heads.dtype != self._shape.dtype:
            raise LaunchRefused(
                f"{name} must be [{self._num_tokens}, {num_heads}, {size}] of {self._shape.dtype}, "
                f"it is {list(heads.shape)} of {heads.dtype}"
            )
        if heads.stride(2) != 1 or (num_heads > 1 and heads.stride(1) != size):
            raise LaunchRefused(f"{name}'s heads lie {heads.stride()[1:]} apart, not one by one")


class StepBefore:
    """The last step of those that one model computes one after another: the next goes on from it.

    Only one whose sequences have a token each, as when answers are written. Who computes two steps
    at once has one of them begun anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over: NativeStep | None = None

    def take(self, library: NativeLibrary) -> NativeStep | None:
        """The step, if there is one of this library; nobody else gets it before it is put back."""
        with self._lock:
            over, self._over = self._over, None
        return over if over is not None and over.library is library else None

    def put(self, over: NativeStep) -> None:
        with self._lock:
            self._over = over


class NativeCalls:
    """The two operations of one loaded library."""

    def __init__(self, library: NativeLibrary) -> None:
        self.library = library
        self._functions = library.functions

    def instruction_sets(self) -> list[InstructionSet]:
        """Those that the library and this processor have, best last, that for tests first."""
        return [each for each in InstructionSet if each and self._functions.legokv_cpu_has(each)]

    def best(self, dtype: torch.dtype) -> InstructionSet:
        """The one that BEST stands for with pools of `dtype`."""
        return InstructionSet(self._functions.legokv_cpu_best(DTYPES[dtype]))

    @contextmanager
    def step(
        self,
        tables: AttentionTables,
        shape: StepShape,
        *,
        num_threads: int,
        instruction_set: InstructionSet = InstructionSet.BEST,
        scoring: Tensor | None = None,
        before: StepBefore | None = None,
    ) -> Iterator[NativeStep]:
        """A step over `tables`, freed at the end; the library's refusal where it makes none.

        With `scoring` int32 [B], how many of each sequence's last tokens score keys, its layers can
        give their mass. It goes on from the step `before`, if it can, and is kept there for the
        next.
        """
        num_tokens, mass_shape = len(tables.positions), None
        if scoring is not None:
            check_scoring(scoring, tables)
            mass_shape = (*tables.pages.shape[:2], shape.page_size)
        arguments = _step_arguments(tables, shape)
        arguments.num_threads = num_threads
        arguments.instruction_set = instruction_set
        arguments.scoring = None if scoring is None else scoring.data_ptr()
        step = None if before is None else before.take(self.library)
        if step is not None and not step.advance(arguments, shape):
            # Before the next one takes as much memory.
            step.end()
            step = None
        if step is None:
            begun = self._functions.legokv_cpu_begin(ctypes.byref(arguments))
            if begun is None:
                raise self.library.refusal()
            step = NativeStep(self.library, begun, shape, num_tokens, mass_shape)
        is_over = False
        try:
            yield step
            is_over = True
        finally:
            if before is not None and is_over and num_tokens == len(tables.pages):
                before.put(step)
            else:
                step.end()

    def kv_import(self, pool: Tensor, block: Tensor, pages: Tensor, *, num_threads: int) -> None:
        """Write `block` [M, 2, S, G, D] over `pages` int32 [M] of `pool` [N, 2, S, G, D]."""
        block = block.contiguous()
        self._import(kv_import_arguments(pool, block, pages), num_threads)

    def import_kv(self, pools: Tensor, kv: Tensor, pages: Tensor, *, num_threads: int) -> None:
        """Put stored kv [L, 2, n, G, D] over `pages` int32 [M] of `pools` [L, N, 2, S, G, D]."""
        kv = kv.contiguous()
        self._import(stored_import_arguments(pools, kv, pages), num_threads)

    def _import(self, arguments: KvImportArguments, num_threads: int) -> None:
        self.library.check(
            self._functions.legokv_cpu_kv_import(ctypes.byref(arguments), num_threads)
        )

    def copy_pages(self, pools: Tensor, sources: Tensor, targets: Tensor) -> None:
        """Copy pages int32 [M] in each of pools [L, N, 2, S, G, D], by one call.

        No target is a source, or another's target. LaunchRefused for a page outside the pools.
        """
        for name, tensor, dtype in (
            ("pools", pools, pools.dtype),
            ("sources", sources, torch.int32),
            ("targets", targets, torch.int32),
        ):
            if tensor.dtype != dtype or not tensor.is_contiguous():
                raise LaunchRefused(
                    f"{name} must be contiguous {dtype}, it is {tensor.dtype} with strides "
                    f"{tensor.stride()}"
                )
        if sources.shape != targets.shape:
            raise LaunchRefused(f"{len(sources)} pages cannot be copied to {len(targets)}")
        arguments = PageCopyArguments(
            pools.data_ptr(),
            sources.data_ptr(),
            targets.data_ptr(),
            *pools.shape[:2],
            pools[0, 0].nbytes,
            len(sources),
            torch.get_num_threads(),
        )
        self.library.check(self._functions.legokv_cpu_copy_pages(ctypes.byref(arguments)))

    def drift(
        self,
        pool: Tensor,
        k: Tensor,
        v: Tensor,
        tables: DriftTables,
        instruction_set: InstructionSet = InstructionSet.BEST,
    ) -> None:
        """`drift_in_place`. LaunchRefused for other layouts or types, or places outside."""
        num_pages, _, page_size, num_kv_heads, head_size = pool.shape
        _check_drift(pool, k, v, tables)
        arguments = DriftArguments(
            k.data_ptr(),
            v.data_ptr(),
            pool.data_ptr(),
            tables.documents.data_ptr(),
            tables.stored.data_ptr(),
            tables.pages.data_ptr(),
            tables.row_turns.data_ptr(),
            tables.page_turns.data_ptr(),
            tables.slot_turns.data_ptr(),
            num_pages,
            k.stride(0),
            v.stride(0),
            len(k),
            len(tables.documents),
            tables.pages.shape[1],
            num_kv_heads,
            head_size,
            page_size,
            DTYPES[pool.dtype],
            instruction_set,
            torch.get_num_threads(),
        )
        self.library.check(self._functions.legokv_cpu_drift(ctypes.byref(arguments)))


def _step_arguments(tables: AttentionTables, shape: StepShape) -> StepArguments:
    return StepArguments(
        num_pool_pages=shape.num_pool_pages,
        num_tokens=len(tables.positions),
        num_sequences=tables.pages.shape[0],
        num_table_rows=tables.pages.shape[1],
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_size=shape.head_size,
        page_size=shape.page_size,
        dtype=DTYPES[shape.dtype],
        scale=tables.scale,
        **tables.addresses(),
    )


def _check_drift(pool: Tensor, k: Tensor, v: Tensor, tables: DriftTables) -> None:
    _, _, page_size, num_kv_heads, head_size = pool.shape
    num_rows, num_pages = len(tables.stored), tables.pages.shape[1]
    layouts = {
        "k": (k, (len(k), num_kv_heads, head_size), pool.dtype),
        "v": (v, (len(k), num_kv_heads, head_size), pool.dtype),
        "documents": (tables.documents, (len(tables.documents), 4), torch.int32),
        "stored": (tables.stored, (num_rows,), torch.int32),
        "pages": (tables.pages, (2, num_pages), torch.int32),
        "row_turns": (tables.row_turns, (num_rows, head_size), torch.float32),
        "page_turns": (tables.page_turns, (num_pages, head_size), torch.float32),
        "slot_turns": (tables.slot_turns, (page_size, head_size), torch.float32),
    }
    for name, (tensor, shape, dtype) in layouts.items():
        if tensor.shape != shape or tensor.dtype != dtype:
            raise LaunchRefused(
                f"{name} must be {list(shape)} of {dtype}, it is {list(tensor.shape)} of "
                f"{tensor.dtype}"
            )
        # Tokens of k and v may lie any stride apart.
        inner = tensor[:1] if name in "kv" else tensor
        if not inner.is_contiguous():
            raise LaunchRefused(f"{name} does not lie one by one: strides {tensor.stride()}")
    if int(tables.documents[:, 1].sum()) != num_rows:
        raise LaunchRefused(
            f"the documents have {int(tables.documents[:, 1].sum())} tokens, stored are {num_rows}"
        )

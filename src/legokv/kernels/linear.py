"""What lies between the attentions, by the CPU library: linear layers, norms and gates.

A result's products are summed in one order, so a row's have the same bits in any company.
"""

import ctypes
import logging
import mmap
from contextlib import suppress

import torch
from torch import Tensor, nn

from legokv.errors import LaunchRefused
from legokv.kernels.gpu import DTYPES
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.ops.block_weight import BlockWeight

_HUGE_PAGE = 2 << 20
_REGION_BYTES = 64 << 20
_LINE = 64

log = logging.getLogger(__name__)


class LinearArguments(ctypes.Structure):
    """LegokvCpuLinear of cpu_launchers.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_columns", ctypes.c_int32),
        ("num_products", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
        ("block_bits", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
    )


TailArguments = LinearArguments * 3
"""Of a layer's three products behind its attention."""


class GateArguments(ctypes.Structure):
    """LegokvCpuGate of cpu_launchers.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_columns", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


class NormArguments(ctypes.Structure):
    """LegokvCpuNorm of cpu_launchers.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_columns", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


class PackedMemory:
    """Memory for packed weights, side by side in pages of 2 MiB where the system has such.

    A decode step reads all of it once: with pages of 4 KiB their addresses take time, too.
    Where the system maps no memory for it, which the log says, each tensor is an ordinary one.
    """

    def __init__(self) -> None:
        self._region: mmap.mmap | None = None
        self._used = 0
        self._maps = True

    def tensor(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """A tensor [num_elements], 64-aligned, of which nothing is written yet."""
        num_bytes = -(-num_elements * dtype.itemsize // _LINE) * _LINE
        if self._region is None or self._used + num_bytes > len(self._region):
            self._region, self._used = self._mapped(max(num_bytes, _REGION_BYTES)), 0
        if self._region is None:
            return torch.empty(num_elements, dtype=dtype)
        start, self._used = self._used, self._used + num_bytes
        return torch.frombuffer(self._region, dtype=dtype, count=num_elements, offset=start)

    def _mapped(self, num_bytes: int) -> mmap.mmap | None:
        """None if the system refuses, which is not tried again."""
        if not self._maps:
            return None
        try:
            return _huge_pages(-(-num_bytes // _HUGE_PAGE))
        except OSError as error:
            self._maps = False
            log.warning(
                "%d bytes for packed weights can't be mapped (%s): they are allocated one by one, "
                "and read more slowly",
                num_bytes,
                error,
            )
            return None


def _huge_pages(num_pages: int) -> mmap.mmap:
    # Private: shared memory has small pages unless the whole system is set otherwise.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    region = mmap.mmap(-1, num_pages * _HUGE_PAGE, flags=private)
    advice: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
    # A kernel without them says so, and Python's headers may have none; small pages do.
    if advice is not None:
        with suppress(OSError):
            region.madvise(advice)
    return region


class LinearCalls:
    """The functions of one loaded library, on torch's number of threads."""

    def __init__(self, library: NativeLibrary) -> None:
        self._library = library
        self._functions = library.functions
        self._memory = PackedMemory()

    def instruction_sets(self, dtype: torch.dtype) -> list[InstructionSet]:
        """Those that multiply rows of `dtype` with this library and processor, best last."""
        return [
            each
            for each in InstructionSet
            if each and self._functions.legokv_cpu_multiplies(each, DTYPES[dtype])
        ]

    def takes(self, weight: Tensor) -> bool:
        """Whether `weight` [N, K] can be packed: float32 or bfloat16, K a multiple of 32."""
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return False
        return self._packed_elements(weight) > 0

    def pack(self, weight: Tensor) -> Tensor:
        """A copy of `weight` [N, K] as the kernels read it; LaunchRefused where `takes` is not."""
        weight = weight.detach().contiguous()
        packed = self._memory.tensor(max(self._packed_elements(weight), 1), weight.dtype)
        self._library.check(
            self._functions.legokv_cpu_pack_weight(
                ctypes.c_void_p(weight.data_ptr()),
                *weight.shape,
                DTYPES[weight.dtype],
                ctypes.c_void_p(packed.data_ptr()),
            )
        )
        return packed

    def pack_blocks(self, weight: BlockWeight) -> Tensor:
        """A copy as the kernels read it; LaunchRefused where K is no multiple of 32."""
        num_bytes: int = self._functions.legokv_cpu_block_bytes(*weight.shape, weight.bits)
        packed = self._memory.tensor(max(num_bytes, 1), torch.uint8)
        numbers, scales = weight.numbers.contiguous(), weight.scales.contiguous()
        self._library.check(
            self._functions.legokv_cpu_pack_blocks(
                ctypes.c_void_p(numbers.data_ptr()),
                ctypes.c_void_p(scales.data_ptr()),
                *weight.shape,
                weight.bits,
                ctypes.c_void_p(packed.data_ptr()),
            )
        )
        return packed

    def multiply(
        self,
        x: Tensor,
        weight: "NativeWeight",
        instruction_set: InstructionSet,
        residual: Tensor | None = None,
    ) -> Tensor:
        """nn.Linear's result [T, N] of `x` [T, K], or [T, 2 * K] where a gate is put before.

        It is added to `residual` [T, N]. bfloat16 goes by SOFTWARE_TILES, AVX512_BF16 or AMX.
        """
        # Not len(x), which torch answers in Python: this is called for each layer of a step.
        num_rows, (num_columns, num_products) = x.shape[0], weight.shape
        arguments = LinearArguments.from_buffer_copy(weight.arguments)
        shape = (num_rows, 2 * num_products if arguments.gated else num_products)
        _check_rows("x", x, shape, weight.dtype)
        x = x.contiguous()
        out = x.new_empty(num_rows, num_columns)
        if residual is not None:
            _check_rows("residual", residual, (num_rows, num_columns), weight.dtype)
            residual = residual.contiguous()
            arguments.residual = residual.data_ptr()
        arguments.x, arguments.out, arguments.num_rows = x.data_ptr(), out.data_ptr(), num_rows
        arguments.instruction_set = instruction_set
        arguments.num_threads = torch.get_num_threads()
        self._library.check(self._functions.legokv_cpu_multiply(ctypes.byref(arguments), 1))
        return out

    def feed(self, attended: Tensor, x: Tensor, tail: "NativeTail") -> Tensor:
        """A layer's result [T, hidden] of its attention's [T, H * D] and its `x` [T, hidden]."""
        num_rows, (hidden, num_attended) = x.shape[0], tail.out.shape
        _check_rows("what attention gives", attended, (num_rows, num_attended), tail.out.dtype)
        _check_rows("x", x, (num_rows, hidden), tail.out.dtype)
        attended, x = attended.contiguous(), x.contiguous()
        after, result = x.new_empty(num_rows, hidden), x.new_empty(num_rows, hidden)
        wide = x.new_empty(num_rows, tail.gate_up.shape[0])
        arguments = TailArguments.from_buffer_copy(tail.arguments)
        out, gate_up, down = arguments
        out.x, out.residual, out.out = attended.data_ptr(), x.data_ptr(), after.data_ptr()
        gate_up.x, gate_up.out = out.out, wide.data_ptr()
        down.x, down.residual, down.out = gate_up.out, out.out, result.data_ptr()
        num_threads = torch.get_num_threads()
        for each in arguments:
            each.num_rows, each.num_threads = num_rows, num_threads
        self._library.check(self._functions.legokv_cpu_multiply(arguments, len(arguments)))
        return result

    def gate(self, x: Tensor, instruction_set: InstructionSet = InstructionSet.BEST) -> Tensor:
        """silu(gate) * up [T, N] of `x` [T, 2 * N]: a row's gates, then its ups."""
        x = x.contiguous()
        out = x.new_empty(len(x), x.shape[1] // 2)
        arguments = GateArguments(
            x.data_ptr(),
            out.data_ptr(),
            len(x),
            out.shape[1],
            DTYPES[x.dtype],
            instruction_set,
            torch.get_num_threads(),
        )
        self._library.check(self._functions.legokv_cpu_gate(ctypes.byref(arguments)))
        return out

    def norm(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        instruction_set: InstructionSet = InstructionSet.BEST,
    ) -> Tensor:
        """The decoder's RMSNorm by `weight` [N] over the last axis of `x` [..., N]."""
        _check_rows("a norm's weight", weight, (x.shape[-1],), x.dtype)
        x, weight = x.contiguous(), weight.contiguous()
        out = torch.empty_like(x)
        arguments = NormArguments(
            x.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            x.numel() // len(weight),
            len(weight),
            DTYPES[x.dtype],
            instruction_set,
            torch.get_num_threads(),
            eps,
        )
        self._library.check(self._functions.legokv_cpu_norm(ctypes.byref(arguments)))
        return out

    def _packed_elements(self, weight: Tensor) -> int:
        elements: int = self._functions.legokv_cpu_packed_elements(*weight.shape)
        return elements


def _check_rows(name: str, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if rows.shape != shape or rows.dtype != dtype:
        raise LaunchRefused(
            f"{name} must be {list(shape)} of {dtype}, it is {list(rows.shape)} of {rows.dtype}"
        )


class NativeNorm(nn.Module):
    """The decoder's RMSNorm by the library, its `weight` shared."""

    def __init__(self, calls: LinearCalls, weight: Tensor, eps: float) -> None:
        super().__init__()
        self._calls = calls
        self.weight = weight.detach().contiguous()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self._calls.norm(x, self.weight, self.eps)


class NativeWeight:
    """A weight [N, K] that `calls` packed, its bias [N] in float32, what x goes through before.

    One in blocks is for bfloat16 rows: the results are those of its dense form, bit by bit.
    """

    def __init__(
        self, calls: LinearCalls, weight: Tensor | BlockWeight, bias: Tensor | None
    ) -> None:
        self.shape = tuple(weight.shape)
        block_bits = weight.bits if isinstance(weight, BlockWeight) else 0
        if isinstance(weight, BlockWeight):
            self.packed, self.dtype = calls.pack_blocks(weight), torch.bfloat16
        else:
            self.packed, self.dtype = calls.pack(weight), weight.dtype
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.norm: NativeNorm | None = None
        self.arguments = LinearArguments(
            weight=self.packed.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            num_columns=self.shape[0],
            num_products=self.shape[1],
            dtype=DTYPES[self.dtype],
            block_bits=block_bits,
        )

    def put_norm_before(self, norm: NativeNorm) -> None:
        """x goes through `norm`, which must be of its size."""
        _check_rows("a norm's weight", norm.weight, self.shape[1:], self.dtype)
        self.norm = norm
        self.arguments.norm, self.arguments.norm_eps = norm.weight.data_ptr(), norm.eps

    def put_gate_before(self) -> None:
        self.arguments.gated = True


class NativeLinear(nn.Module):
    """The decoder's Linear by the library, and the norm or gate that `weight` has before it.

    `calls` must take the weight and have an instruction set for it.
    """

    def __init__(
        self, calls: LinearCalls, weight: Tensor | BlockWeight, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self._calls = calls
        self.weight = NativeWeight(calls, weight, bias)
        self.instruction_set = calls.instruction_sets(self.weight.dtype)[-1]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._calls.multiply(x, self.weight, self.instruction_set, residual)


class NativeTail(nn.Module):
    """What a decoder's layer does behind its attention, by one call of the library.

    The bits are those of its linear layers one by one: `out`, then `gate_up` with the norm before
    it and `down` with the gate. A step of one token has them all in less time than Python takes to
    ask for each.
    """

    def __init__(
        self, calls: LinearCalls, out: NativeLinear, gate_up: NativeLinear, down: NativeLinear
    ) -> None:
        super().__init__()
        self._calls = calls
        self.out, self.gate_up, self.down = out.weight, gate_up.weight, down.weight
        self.arguments = TailArguments(
            *(each.arguments for each in (self.out, self.gate_up, self.down))
        )
        for copied, each in zip(self.arguments, (out, gate_up, down), strict=True):
            copied.instruction_set = each.instruction_set

    def forward(self, attended: Tensor, x: Tensor) -> Tensor:
        return self._calls.feed(attended, x, self)


class NativeGate(nn.Module):
    """The decoder's gate by the library, for the types that it knows."""

    def __init__(self, calls: LinearCalls) -> None:
        super().__init__()
        self._calls = calls

    def forward(self, x: Tensor) -> Tensor:
        return self._calls.gate(x)

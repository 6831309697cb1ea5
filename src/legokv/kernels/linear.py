"""What lies between the attentions, by the CPU library: linear layers and gates.

A result's products are summed in one order, so a row's have the same bits in any company.
"""

import ctypes

import torch
from torch import Tensor, nn

from legokv.errors import LaunchRefused
from legokv.kernels.gpu import DTYPES
from legokv.kernels.native_library import InstructionSet, NativeLibrary


class LinearArguments(ctypes.Structure):
    """LegokvCpuLinear of cpu_launchers.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_columns", ctypes.c_int32),
        ("num_products", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


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


class LinearCalls:
    """The functions of one loaded library, on torch's number of threads."""

    def __init__(self, library: NativeLibrary) -> None:
        self._library = library
        self._functions = library.functions

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
        packed = weight.new_empty(self._packed_elements(weight))
        self._library.check(
            self._functions.legokv_cpu_pack_weight(
                ctypes.c_void_p(weight.data_ptr()),
                *weight.shape,
                DTYPES[weight.dtype],
                ctypes.c_void_p(packed.data_ptr()),
            )
        )
        return packed

    def multiply(
        self, x: Tensor, weight: "NativeWeight", instruction_set: InstructionSet
    ) -> Tensor:
        """nn.Linear's result [T, N] of `x` [T, K]; bfloat16 goes by SOFTWARE_TILES or AMX."""
        num_columns, num_products = weight.shape
        dtype = weight.packed.dtype
        if x.dtype != dtype or x.dim() != 2 or x.shape[1] != num_products:
            raise LaunchRefused(
                f"x must be [rows, {num_products}] of {dtype}, it is {list(x.shape)} of {x.dtype}"
            )
        x = x.contiguous()
        out = x.new_empty(len(x), num_columns)
        arguments = LinearArguments(
            x.data_ptr(),
            weight.packed.data_ptr(),
            None if weight.bias is None else weight.bias.data_ptr(),
            out.data_ptr(),
            len(x),
            num_columns,
            num_products,
            DTYPES[dtype],
            instruction_set,
            torch.get_num_threads(),
        )
        self._library.check(self._functions.legokv_cpu_multiply(ctypes.byref(arguments)))
        return out

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

    def _packed_elements(self, weight: Tensor) -> int:
        elements: int = self._functions.legokv_cpu_packed_elements(*weight.shape)
        return elements


class NativeWeight:
    """A weight [N, K] that `calls` packed, and its bias [N] in float32."""

    def __init__(self, calls: LinearCalls, weight: Tensor, bias: Tensor | None) -> None:
        self.shape = tuple(weight.shape)
        self.packed = calls.pack(weight)
        self.bias = None if bias is None else bias.detach().float().contiguous()


class NativeLinear(nn.Module):
    """nn.Linear by the library; `calls` must take the weight and have an instruction set for it."""

    def __init__(self, calls: LinearCalls, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._calls = calls
        self._weight = NativeWeight(calls, weight, bias)
        self._instruction_set = calls.instruction_sets(weight.dtype)[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self._calls.multiply(x, self._weight, self._instruction_set)


class NativeGate(nn.Module):
    """The decoder's gate by the library, for the types that it knows."""

    def __init__(self, calls: LinearCalls) -> None:
        super().__init__()
        self._calls = calls

    def forward(self, x: Tensor) -> Tensor:
        return self._calls.gate(x)

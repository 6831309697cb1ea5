"""Linear layers by the CPU library, for processors with tiles (AMX).

A result's products are summed in one order, so a row's have the same bits in any company.
"""

import ctypes
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor, nn

from legokv.errors import LaunchRefused


class Tiles(IntEnum):
    """What multiplies; SOFTWARE gives the bits that AMX does, slowly, for tests."""

    SOFTWARE = 0
    AMX = 1


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
        ("tiles", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


class LinearCalls:
    """The functions of one loaded library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.legokv_cpu_packed_elements.restype = ctypes.c_int64
        self._library.legokv_cpu_last_error.restype = ctypes.c_char_p
        self._library.legokv_cpu_multiply.argtypes = [ctypes.c_void_p]

    def has(self, tiles: Tiles) -> bool:
        """Whether the library and this processor have them."""
        return bool(self._library.legokv_cpu_has_tiles(tiles))

    def takes(self, weight: Tensor) -> bool:
        """Whether `weight` [N, K] can be packed: bfloat16, K a multiple of 32."""
        return weight.dtype == torch.bfloat16 and self._packed_elements(weight) > 0

    def pack(self, weight: Tensor) -> Tensor:
        """A copy of a bfloat16 `weight` [N, K] as the tiles read it; LaunchRefused for other K."""
        weight = weight.detach().contiguous()
        packed = weight.new_empty(self._packed_elements(weight))
        self._check(
            self._library.legokv_cpu_pack_weight(
                ctypes.c_void_p(weight.data_ptr()),
                *weight.shape,
                ctypes.c_void_p(packed.data_ptr()),
            )
        )
        return packed

    def multiply(self, x: Tensor, weight: "TiledWeight", tiles: Tiles = Tiles.AMX) -> Tensor:
        """nn.Linear's result [T, N] of bfloat16 `x` [T, K], on torch's number of threads."""
        num_columns, num_products = weight.shape
        if x.dtype != torch.bfloat16 or x.dim() != 2 or x.shape[1] != num_products:
            raise LaunchRefused(
                f"x must be [rows, {num_products}] of bfloat16, it is {list(x.shape)} of {x.dtype}"
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
            tiles,
            torch.get_num_threads(),
        )
        self._check(self._library.legokv_cpu_multiply(ctypes.byref(arguments)))
        return out

    def _packed_elements(self, weight: Tensor) -> int:
        elements: int = self._library.legokv_cpu_packed_elements(*weight.shape)
        return elements

    def _check(self, status: int) -> None:
        if status != 0:
            message: bytes = self._library.legokv_cpu_last_error()
            raise LaunchRefused(message.decode())


class TiledWeight:
    """A weight [N, K] that `calls` packed, and its bias [N] in float32."""

    def __init__(self, calls: LinearCalls, weight: Tensor, bias: Tensor | None) -> None:
        self.shape = tuple(weight.shape)
        self.packed = calls.pack(weight)
        self.bias = None if bias is None else bias.detach().float().contiguous()


class TiledLinear(nn.Module):
    """nn.Linear for bfloat16 rows; `calls` must have AMX and take the weight."""

    def __init__(self, calls: LinearCalls, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._calls = calls
        self._weight = TiledWeight(calls, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._calls.multiply(x, self._weight)

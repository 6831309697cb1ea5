"""The CPU library as it is loaded: its functions, and what they say when they refuse."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor

from legokv.errors import LaunchRefused, OutOfMemory

NO_MEMORY = "no memory left"
"""How the library's sentence begins where it is no fault of the request's."""


_ONE_ADDRESS = (
    "instruction_set",
    "num_keys_read",
    "end",
    "multiply",
    "gate",
    "norm",
    "draw",
    "drift",
    "copy_pages",
)


class InstructionSet(IntEnum):
    """Which build of the kernels runs; BEST is the last this processor has for the dtype.

    SOFTWARE_TILES does what AMX does, slowly, for tests on any machine.
    """

    BEST = 0
    SOFTWARE_TILES = 1
    PORTABLE = 2
    AVX2 = 3
    AVX512 = 4
    AVX512_BF16 = 5
    AMX = 6

    @property
    def bfloat16_only(self) -> bool:
        return self in (self.SOFTWARE_TILES, self.AVX512_BF16, self.AMX)


class NativeLibrary:
    """One loaded library. `functions` take and return C's int, but for those declared here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.functions = ctypes.CDLL(str(path))
        self.functions.legokv_cpu_begin.restype = ctypes.c_void_p
        self.functions.legokv_cpu_last_error.restype = ctypes.c_char_p
        self.functions.legokv_cpu_packed_elements.restype = ctypes.c_int64
        self.functions.legokv_cpu_int8_bytes.restype = ctypes.c_int64
        self.functions.legokv_cpu_num_keys_read.restype = ctypes.c_int64
        for name in _ONE_ADDRESS:
            getattr(self.functions, f"legokv_cpu_{name}").argtypes = [ctypes.c_void_p]
        self.functions.legokv_cpu_attend.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.functions.legokv_cpu_attend.restype = None
        self.functions.legokv_cpu_end.restype = None

    def check(self, status: int) -> None:
        """The `refusal`, unless `status` is that all went well."""
        if status != 0:
            raise self.refusal()

    def refusal(self) -> LaunchRefused | OutOfMemory:
        """What the last failed call of this thread had to say."""
        message = self._last_error()
        if message.startswith(NO_MEMORY):
            return OutOfMemory(f"{message}: ask again when less is under way")
        return LaunchRefused(message)

    def _last_error(self) -> str:
        message: bytes = self.functions.legokv_cpu_last_error()
        return message.decode()


class DrawArguments(ctypes.Structure):
    """LegokvCpuDraw of cpu_launchers.h."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("top_k", ctypes.c_void_p),
        ("temperature", ctypes.c_void_p),
        ("top_p", ctypes.c_void_p),
        ("min_p", ctypes.c_void_p),
        ("place", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_tokens", ctypes.c_int32),
        ("is_double", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


@dataclass(frozen=True)
class DrawOptions:
    """Of each row to draw from: top_k 0 keeps all, temperature 0 takes the first likeliest."""

    temperature: Sequence[float]
    top_k: Sequence[int]
    top_p: Sequence[float]
    min_p: Sequence[float]
    place: Sequence[float]


def drawn_rows(
    library: NativeLibrary,
    values: Tensor,
    options: DrawOptions,
    instruction_set: InstructionSet = InstructionSet.BEST,
) -> Tensor:
    """Ids int64 [R] of `values` [R, V], float32 or float64, finite but for what must not come.

    LaunchRefused for values of other types, or not as many options as rows.
    """
    if values.dim() != 2 or values.dtype not in (torch.float32, torch.float64):
        raise LaunchRefused(
            "values to draw from are [rows, tokens] of float32 or float64, these are "
            f"{list(values.shape)} of {values.dtype}"
        )
    columns = {
        name: torch.tensor(column, dtype=torch.int64 if name == "top_k" else torch.float64)
        for name, column in vars(options).items()
    }
    if any(len(column) != len(values) for column in columns.values()):
        raise LaunchRefused(f"{len(values)} rows to draw from need as many of each option")
    values = values.contiguous()
    out = torch.empty(len(values), dtype=torch.int64)
    arguments = DrawArguments(
        values.data_ptr(),
        out=out.data_ptr(),
        num_rows=len(values),
        num_tokens=values.shape[1],
        is_double=values.dtype == torch.float64,
        instruction_set=instruction_set,
        num_threads=torch.get_num_threads(),
        **{name: column.data_ptr() for name, column in columns.items()},
    )
    library.check(library.functions.legokv_cpu_draw(ctypes.byref(arguments)))
    return out

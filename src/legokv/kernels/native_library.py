"""The CPU library as it is loaded: its functions, and what they say when they refuse."""

import ctypes
from enum import IntEnum
from pathlib import Path

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
        self.functions.legokv_cpu_block_bytes.restype = ctypes.c_int64
        self.functions.legokv_cpu_num_keys_read.restype = ctypes.c_int64
        for name in _ONE_ADDRESS:
            getattr(self.functions, f"legokv_cpu_{name}").argtypes = [ctypes.c_void_p]
        self.functions.legokv_cpu_advance.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
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

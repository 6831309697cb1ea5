"""The CPU library as it is loaded: its functions, and what they say when they refuse."""

import ctypes
from enum import IntEnum
from pathlib import Path

from legokv.errors import LaunchRefused


class InstructionSet(IntEnum):
    """Which build of the kernels runs; BEST is the last this processor has for the dtype.

    AMX is for linear layers of bfloat16; PORTABLE gives their bits, slowly, for tests.
    """

    BEST = 0
    PORTABLE = 1
    AVX2 = 2
    AVX512 = 3
    AVX512_BF16 = 4
    AMX = 5


class NativeLibrary:
    """One loaded library. `functions` take and return C's int, but for those declared here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.functions = ctypes.CDLL(str(path))
        self.functions.legokv_cpu_begin.restype = ctypes.c_void_p
        self.functions.legokv_cpu_last_error.restype = ctypes.c_char_p
        self.functions.legokv_cpu_packed_elements.restype = ctypes.c_int64
        for name in ("instruction_set", "end", "multiply", "gate"):
            getattr(self.functions, f"legokv_cpu_{name}").argtypes = [ctypes.c_void_p]
        self.functions.legokv_cpu_attend.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.functions.legokv_cpu_attend.restype = None
        self.functions.legokv_cpu_end.restype = None

    def check(self, status: int) -> None:
        """LaunchRefused with the library's words unless `status` is that all went well."""
        if status != 0:
            raise self.refusal()

    def refusal(self) -> LaunchRefused:
        """What the last failed call of this thread had to say."""
        message: bytes = self.functions.legokv_cpu_last_error()
        return LaunchRefused(message.decode())

"""Compile the CPU library: python build/build_native.py"""

import sys
from collections.abc import Callable

from ending import run


def main() -> int:
    return run("build_native.py", load)


def load() -> Callable[[], None]:
    from legokv.kernels.build_cpu import build_native_library
    from legokv.kernels.cpu import NativeCalls
    from legokv.kernels.native_library import NativeLibrary

    def build() -> None:
        library = NativeLibrary(build_native_library(say))
        sets = ", ".join(each.name.lower() for each in NativeCalls(library).instruction_sets()[1:])
        say(f"{library.path}: instruction sets of this processor: {sets}")

    return build


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

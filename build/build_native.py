"""Compile the CPU library: python build/build_native.py"""

import sys

from legokv.errors import LegokvError
from legokv.native_calls import NativeCalls
from legokv.native_library import build_native_library


def main() -> int:
    try:
        calls = NativeCalls(build_native_library(say))
    except LegokvError as error:
        print(f"build_native.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("build_native.py: interrupted, nothing written", file=sys.stderr)
        return 130
    sets = ", ".join(each.name.lower() for each in calls.instruction_sets())
    say(f"{calls.path}: instruction sets of this processor: {sets}")
    return 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

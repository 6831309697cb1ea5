"""What the compiler made of the kernels, without a GPU: python build/sass.py [--write]

Registers, stack, shared memory and blocks a multiprocessor of each kernel for sm_80 and sm_90, and
the instructions of its inner loop by kind, beside those of build/sass.json; `--write` puts the new
ones there. --library LIB reads one that is compiled already. Needs nvcc, cuobjdump and nvdisasm:
the machine's own, else PyPI's wheels of them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from ending import run

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "build" / "sass.json"
ARCHITECTURES = ("80-real", "90-real")
# What a multiprocessor has: registers, and shared memory, of which each block takes 1 KiB more.
REGISTERS = 64 * 1024
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024}
THREADS = {"attend_tiled": 128, "attend_shared": 128, "kv_import": 256, "write_kv": 256,
           "attend_reference": 32, "combine_splits": 128, "norm_rows": 32,
           "sum_weights": 32}  # fmt: skip
MOST_BLOCKS = 32
KINDS = {
    "tensor": ("HMMA",),
    "matrix load": ("LDSM",),
    "copy": ("LDGSTS", "LDGDEPBAR", "DEPBAR"),
    "local": ("LDL", "STL"),
    "shared": ("LDS", "STS"),
    "global": ("LDG", "STG", "LD", "ST"),
    "special": ("MUFU", "I2F", "F2I", "F2F", "I2FP"),
    "shuffle": ("SHFL", "VOTE", "VOTEU", "R2P"),
    "float": ("FFMA", "FMUL", "FADD", "FMNMX", "FSEL", "FSETP", "FSET", "F2FP", "FCHK", "HADD2",
              "HMUL2", "HFMA2"),
    "control": ("BRA", "BSSY", "BSYNC", "CALL", "RET", "EXIT", "BAR", "WARPSYNC", "NOP", "BREAK",
                "BMOV", "YIELD"),
}  # fmt: skip
FUNCTION = re.compile(r"Function\s*:?\s*(\S+?):?$")
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\S*)([^;]*);")
TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
NAME = re.compile(rf"({'|'.join(THREADS)}|attend_split)_kernelI(.*?)EEv")
ARGUMENT = re.compile(r"NS_8bfloat16E|NS_7float16E|S2_|Li\d+E|Lb1E|f")
TYPES = {"NS_8bfloat16E": "bf16", "NS_7float16E": "f16", "f": "f32", "Lb1E": "shared"}


@dataclass(frozen=True)
class Kernel:
    """What one kernel takes; `loop` counts its inner loop's instructions by kind."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    blocks: int
    instructions: int
    loop: Mapping[str, int]

    def __str__(self) -> str:
        loop = ", ".join(f"{kind} {count}" for kind, count in self.loop.items())
        return (
            f"{self.registers} registers, stack {self.stack_bytes} B, shared {self.shared_bytes} "
            f"B, {self.blocks} blocks, {self.instructions} instructions; loop of "
            f"{sum(self.loop.values())}: {loop}"
        )


def kernels_of(library: Path, tools: Path | None = None) -> dict[str, dict[str, Kernel]]:
    """By architecture and name, the 16-bit kernels in bfloat16 and the float32 ones."""
    resources = _by_architecture(_listing(library, "-res-usage", tools))
    code = _by_architecture(_listing(library, "-sass", tools))
    made: dict[str, dict[str, Kernel]] = {}
    for architecture, lines in sorted(code.items()):
        used = dict(_resources(resources[architecture]))
        found = {}
        for symbol, body in _functions(lines):
            name = short_name(symbol)
            if name is not None and symbol in used:
                found[name] = _kernel(architecture, name, used[symbol], body)
        made[architecture] = dict(sorted(found.items()))
    return made


def short_name(symbol: str) -> str | None:
    """As "attend_tiled bf16 128"; None for what is no kernel, or float16, the same as bfloat16."""
    found = NAME.search(symbol)
    if found is None:
        return None
    words: list[str] = []
    for mangled in ARGUMENT.findall(found[2]):
        # S2_ repeats the first type.
        words.append(TYPES.get(mangled) or (words[0] if mangled == "S2_" else mangled[2:-1]))
    return None if "f16" in words else " ".join((found[1], *words))


def _kernel(architecture: str, name: str, used: tuple[int, int], body: Sequence[str]) -> Kernel:
    registers, stack = used
    shared, threads = shared_bytes(name), threads_of(name)
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = SHARED_BYTES[architecture] // (shared + 1024)
    instructions = [Instruction(m) for m in map(INSTRUCTION.search, body) if m]
    return Kernel(
        registers,
        stack,
        shared,
        min(by_registers, by_shared, 2048 // threads, MOST_BLOCKS),
        len(instructions),
        dict(sorted(Counter(kind_of(each.operation) for each in inner_loop(instructions)).items())),
    )


def kind_of(operation: str) -> str:
    return next((kind for kind, names in KINDS.items() if operation in names), "integer")


class Instruction:
    """One line of a listing: where it is, what it does, and where it may go on."""

    def __init__(self, found: re.Match[str]) -> None:
        self.address, self.operation = int(found[1], 16), found[3]
        target = TARGET.search(found[5]) if self.operation == "BRA" else None
        # Where lanes have parted, BRA.DIV goes to another form of the same, which is not counted.
        self.target = int(target[1], 16) if target and ".DIV" not in found[4] else None
        ends = self.operation in ("BRA", "EXIT", "RET") and not found[2] and "," not in found[5]
        self.goes_on = not ends


def inner_loop(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The shortest loop with most products in it: of tensor cores, else of floats."""
    product = "HMMA" if any(each.operation == "HMMA" for each in instructions) else "FFMA"
    comes_from = _comes_from(instructions)
    back: dict[int, list[int]] = {}  # by where a loop begins, from where one goes back there
    for each in instructions:
        if each.target is not None and each.target < each.address:
            back.setdefault(each.target, []).append(each.address)
    loops = [_loop(instructions, comes_from, first, ends) for first, ends in back.items()]

    def products(loop: list[Instruction]) -> int:
        return sum(each.operation == product for each in loop)

    return max(loops, key=lambda loop: (products(loop), -len(loop)), default=[])


def _comes_from(instructions: Sequence[Instruction]) -> dict[int, list[int]]:
    """By address, the addresses from which one comes there."""
    found: dict[int, list[int]] = {}
    for each, after in pairwise(instructions):
        if each.goes_on:
            found.setdefault(after.address, []).append(each.address)
    for each in instructions:
        if each.target is not None:
            found.setdefault(each.target, []).append(each.address)
    return found


def _loop(
    instructions: Sequence[Instruction],
    comes_from: Mapping[int, Sequence[int]],
    first: int,
    ends: Sequence[int],
) -> list[Instruction]:
    """All from which one comes to the ends without `first`, wherever the compiler put them."""
    inside, waiting = {first}, [*ends]
    while waiting:
        address = waiting.pop()
        if address not in inside:
            inside.add(address)
            waiting.extend(comes_from.get(address, ()))
    return [each for each in instructions if each.address in inside]


def threads_of(name: str) -> int:
    kernel, dtype, *_ = name.split()
    if kernel == "attend_split":
        return 64 if dtype == "f32" else 128
    return THREADS[kernel]


def shared_bytes(name: str) -> int:
    """Of a block: two stages of keys and values, query and lists, or each warp's own."""
    kernel, dtype, *sizes = name.split()
    size = 4 if dtype == "f32" else 2
    if kernel in ("attend_tiled", "attend_shared"):
        head_size = int(sizes[0])
        row, strips = (head_size + 8) * size, 2 if head_size > 80 else 4
        lists = 64 * 32 + 128 * 16 + head_size // 2 * 4  # strips, rows, frequencies
        return 2 * 2 * strips * 16 * row + 128 * row + lists
    if kernel == "attend_split":
        head_size, rows = map(int, sizes)
        strips = 4 * 16 * (head_size * size + 16)
        # Beside them a table of angles on tensor cores; else the query and the keys' weights.
        own = 4 * head_size if dtype == "bf16" else rows * (head_size + 16) * 4
        return threads_of(name) // 32 * (strips + own + -(-8 * rows // 16) * 16)
    return 0


def _listing(library: Path, what: str, tools: Path | None) -> list[str]:
    path = os.environ["PATH"] if tools is None else f"{tools}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        ["cuobjdump", what, str(library)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines()


def _by_architecture(lines: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    architecture = ""
    for line in lines:
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif architecture:
            found.setdefault(architecture, []).append(line)
    return found


def _resources(lines: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, numbers in pairwise(lines):
        found, used = FUNCTION.search(name.strip()), RESOURCES.search(numbers)
        if found and used:
            yield found[1], (int(used[1]), int(used[2]))


def _functions(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    symbol, body = "", list[str]()
    for line in [*lines, "Function : end"]:
        found = FUNCTION.search(line.strip()) if "Function" in line else None
        if found:
            if symbol:
                yield symbol, body
            symbol, body = found[1], []
        else:
            body.append(line)


def nvcc_release() -> str:
    """As "V13.0.88": another makes another table."""
    from legokv.kernels.toolchain import nvcc_or_wheels

    nvcc = nvcc_or_wheels(ROOT / "out" / "cuda-13.0", say)
    said = subprocess.check_output([nvcc, "--version"], text=True)
    return re.findall(r"V[0-9.]+", said)[-1]


def as_json(made: Mapping[str, Mapping[str, Kernel]]) -> dict[str, dict[str, object]]:
    return {arch: {name: asdict(each) for name, each in of.items()} for arch, of in made.items()}


def changes(
    made: Mapping[str, Mapping[str, Kernel]], table: Mapping[str, Mapping[str, object]]
) -> list[str]:
    """A line for each kernel of the architectures made that is not as the table has it."""
    lines = []
    for architecture, kernels in made.items():
        before = table.get(architecture, {})
        for name in sorted(kernels.keys() | before.keys()):
            now = asdict(kernels[name]) if name in kernels else None
            if now != before.get(name):
                lines.append(f"{architecture} {name}: {before.get(name)} became {now}")
    return lines


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, help="default: the launchers, compiled as needed")
    parser.add_argument("--write", action="store_true", help="put what was found into the table")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()

    def load() -> Callable[[], None]:
        from legokv.kernels.build_gpu import PluginBuild, build_plugin_library
        from legokv.kernels.toolchain import sass_tools

        def work() -> None:
            library = arguments.library or build_plugin_library(
                PluginBuild(
                    ROOT / "out",
                    folder="launchers-sass",
                    architectures=ARCHITECTURES,
                    with_plugins=False,
                ),
                say,
            )
            made = kernels_of(library, sass_tools(ROOT / "out" / "cuda-sass", say))
            for architecture, kernels in made.items():
                for name, kernel in kernels.items():
                    say(f"{architecture} {name}: {kernel}")
            if arguments.write:
                table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
                release = {"nvcc": nvcc_release()}
                text = json.dumps(table | as_json(made) | release, indent=1, sort_keys=True)
                TABLE.write_text(text + "\n")
            for line in changes(made, json.loads(TABLE.read_text())):
                say(f"changed: {line}")

        return work

    return run("sass.py", load)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

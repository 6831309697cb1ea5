"""The CPU library: where a compiled one lies, and how it is compiled from plugins/cpu.

One folder for each state of the sources and compiler, so that a library is up to date or not there.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from legokv.errors import NativeBuildFailed, NativeLibraryMissing
from legokv.kernels.toolchain import find_cmake, run_compiler

ROOT = Path(__file__).resolve().parents[3]
LIBRARY_NAME = "liblegokv_cpu.so"
BUILD_COMMAND = "python build/build_native.py"

_INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)

Say = Callable[[str], None]


@dataclass(frozen=True)
class NativeBuild:
    """Sources (plugins/) and the folder that holds what is compiled from them."""

    source: Path = ROOT / "plugins"
    out: Path = ROOT / "out" / "native"

    def library(self) -> Path:
        """Where the library of these sources and this machine's compiler lies, or would.

        NativeLibraryMissing where there are no sources or there is no compiler.
        """
        if not (self.source / "cpu" / "CMakeLists.txt").is_file():
            raise NativeLibraryMissing(
                f"this installation has no sources to compile ({self.source / 'cpu'}): "
                "work from a checkout, or choose attention 'torch'"
            )
        return self.out / self._digest()[:16] / LIBRARY_NAME

    def _digest(self) -> str:
        digest = hashlib.sha256(_compiler_version(find_compiler()).encode())
        for file in sorted(self._source_files()):
            digest.update(file.relative_to(self.source).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def _source_files(self) -> set[Path]:
        """All of plugins/cpu, and what it includes from elsewhere in plugins/."""
        files: set[Path] = set()
        left = [self.source / "status.cpp", *(self.source / "cpu").rglob("*.*")]
        while left:
            file = left.pop()
            if file in files:
                continue
            files.add(file)
            for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
                candidates = (self.source / name, self.source / "include" / name)
                left += [path for path in candidates if path.is_file()]
        return files


def find_compiler() -> Path:
    """$CXX, else g++ or c++ on PATH; NativeLibraryMissing if there is none, or $CXX is none."""
    named = os.environ.get("CXX")
    program = shutil.which(named) if named else shutil.which("g++") or shutil.which("c++")
    if named and program is None:
        raise NativeLibraryMissing(
            f"CXX={named} is no program: name a C++ compiler, without options, or unset it"
        )
    if program is None:
        raise NativeLibraryMissing("no C++ compiler: install g++, or choose attention 'torch'")
    return Path(program)


def find_native_library(build: NativeBuild | None = None) -> Path:
    """The compiled library; NativeLibraryMissing with the reason if there is none up to date."""
    library = (build or NativeBuild()).library()
    if not library.is_file():
        raise NativeLibraryMissing(f"no library of the present sources: run {BUILD_COMMAND}")
    return library


def build_native_library(say: Say, build: NativeBuild | None = None) -> Path:
    """Compile the library unless it is there already; its path.

    NativeLibraryMissing or ToolchainMissing where something to compile with or from is missing,
    NativeBuildFailed with the compiler's words. Others who build at the same time do no harm.
    """
    build = build or NativeBuild()
    library = build.library()
    if library.is_file():
        return library
    say(f"Compiling {LIBRARY_NAME} with {find_compiler()}")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".cmake-") as scratch:
        _compile(build.source / "cpu", Path(scratch))
        (Path(scratch) / LIBRARY_NAME).replace(library)
    return library


def _compile(source: Path, folder: Path) -> None:
    cmake = str(find_cmake())
    compiler = f"-DCMAKE_CXX_COMPILER={find_compiler()}"
    _run([cmake, "-S", str(source), "-B", str(folder), compiler])
    _run([cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)])


def _run(command: list[str]) -> None:
    failure = run_compiler(command, lambda line: None)
    if failure is not None:
        raise NativeBuildFailed(failure)


def _compiler_version(compiler: Path) -> str:
    """Its path and what it calls itself; NativeLibraryMissing if it does not run."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NativeLibraryMissing(f"{compiler} --version failed: {done.stderr.strip()}")
    return f"{compiler} {done.stdout}"

"""What compiles the plugins: nvcc, TensorRT headers, CMake; the machine's own or PyPI's. And how
CMake is run: anew where its cache is of another place or compiler.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from legokv.errors import ToolchainMissing, ToolMisnamed

Say = Callable[[str], None]

USUAL_NVCC = "/usr/local/cuda/bin/nvcc"
# nvcc and what it needs, of one release; later ones want later drivers.
NVCC_WHEELS = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-culibos==13.0.85",
)
# They read what nvcc made; any release reads what earlier ones made.
SASS_WHEELS = ("nvidia-cuda-cuobjdump==13.4.92", "nvidia-cuda-nvdisasm==13.5.37")
# This wheel carries NVIDIA's TensorRT 10.14 headers (Apache-2.0); it is unpacked, never imported.
HEADERS_WHEEL = "kernel-lens==2.0.1"
HEADERS_SHA256 = "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0"
HEADERS_FOLDER = "kernel_lens/include/tensorrt"
HEADER = "NvInferRuntime.h"
CACHE_FILE = "CMakeCache.txt"

KEPT_LINES = 30

_ENTRY = re.compile(r"^(\w+):\w+=(.*)$", re.MULTILINE)
_ERROR = re.compile(r"\berror\b", re.IGNORECASE)


def find_cmake() -> Path:
    """CMake of this environment, or the machine's."""
    own = Path(sysconfig.get_path("scripts")) / "cmake"
    program = str(own) if own.is_file() else shutil.which("cmake")
    if program is None:
        raise ToolchainMissing("no cmake: pip install cmake, or the system's package")
    return Path(program)


def find_nvcc() -> Path | None:
    """The machine's own nvcc: $CUDACXX, else PATH's, else the one in the toolkit's usual folder.

    ToolMisnamed if $CUDACXX is set and no program.
    """
    named = os.environ.get("CUDACXX")
    program = shutil.which(named) if named else shutil.which("nvcc") or shutil.which(USUAL_NVCC)
    if named and program is None:
        raise ToolMisnamed(
            f"CUDACXX={named} is no program: name nvcc's path, without options, or unset it and "
            f"PATH, {USUAL_NVCC} and PyPI's wheels are tried"
        )
    return Path(program) if program else None


def nvcc_or_wheels(folder: Path, say: Say) -> Path:
    """The machine's nvcc, or the one in the pinned wheels, unpacked into `folder` once."""
    own = find_nvcc()
    if own is not None:
        return own
    nvcc = folder / "nvidia/cu13/bin/nvcc"
    if not nvcc.is_file():
        say(f"No nvcc on this machine: fetching {', '.join(NVCC_WHEELS)} (about 200 MB)")
        _pip(["install", "--no-deps", "--target", str(folder), *NVCC_WHEELS], "nvcc")
        _add_lib64(folder / "nvidia/cu13")
    return nvcc


def sass_tools(folder: Path, say: Say) -> Path | None:
    """Where cuobjdump and nvdisasm lie; None for PATH. PyPI's wheels, unpacked into `folder` once,
    where the machine has none.
    """
    if shutil.which("cuobjdump") and shutil.which("nvdisasm"):
        return None
    tools = folder / "nvidia/cu13/bin"
    if not (tools / "nvdisasm").is_file():
        say(f"No cuobjdump on this machine: fetching {', '.join(SASS_WHEELS)} (7 MB)")
        _pip(["install", "--no-deps", "--target", str(folder), *SASS_WHEELS], "cuobjdump")
    return tools


def tensorrt_headers(folder: Path, say: Say) -> Path:
    """A folder with NvInferRuntime.h: a TensorRT installation's, or the pinned wheel's.

    $TENSORRT_INCLUDE comes first; ToolMisnamed if it is set and lacks the header.
    """
    named = os.environ.get("TENSORRT_INCLUDE")
    if named and not (Path(named) / HEADER).is_file():
        raise ToolMisnamed(
            f"TENSORRT_INCLUDE={named} has no {HEADER}: name the folder that has it, or unset it "
            "and the headers are fetched"
        )
    machine = f"/usr/include/{os.uname().machine}-linux-gnu"
    for candidate in (named, machine, "/usr/include", "/usr/local/tensorrt/include"):
        if candidate and (Path(candidate) / HEADER).is_file():
            return Path(candidate)
    headers = folder / HEADERS_FOLDER
    if not (headers / HEADER).is_file():
        say(f"No TensorRT headers on this machine: fetching {HEADERS_WHEEL}")
        folder.mkdir(parents=True, exist_ok=True)
        _pip(["download", "--no-deps", "--dest", str(folder), HEADERS_WHEEL], "TensorRT's headers")
        unpack_headers(next(folder.glob("kernel_lens-*.whl")))
    return headers


def unpack_headers(wheel: Path) -> None:
    """Unpack the wheel's headers beside it; another wheel is removed: ToolchainMissing."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != HEADERS_SHA256:
        wheel.unlink()
        raise ToolchainMissing(f"{wheel.name} has SHA-256 {digest}, expected {HEADERS_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.startswith(HEADERS_FOLDER):
                archive.extract(member, wheel.parent)


def _add_lib64(toolkit: Path) -> None:
    # nvcc links from lib64; the wheels have lib.
    if not (toolkit / "lib64").exists():
        (toolkit / "lib64").symlink_to("lib")


def _pip(arguments: Sequence[str], what: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    status = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if status != 0:
        raise ToolchainMissing(
            f"pip could not fetch {what} (exit status {status}): check the network, or install the "
            "CUDA toolkit 13.0 and TensorRT's headers"
        )


def drop_foreign_cache(folder: Path, expected: Mapping[str, Path], say: Say) -> None:
    """Remove the cache and objects in `folder` if an expected path is another one there.

    CMake refuses a moved or copied folder, and forgets options where the compiler changes. `say`
    gets one line that names both paths; what was linked stays. A path the cache lacks is no reason.
    """
    file = folder / CACHE_FILE
    if not file.is_file():
        return
    cached = dict(_ENTRY.findall(file.read_text(encoding="utf-8")))
    for name, path in expected.items():
        if name in cached and Path(cached[name]).resolve() != path.resolve():
            say(f"{folder} was made for {cached[name]}, now it is {path}: compiling it all again")
            file.unlink()
            _remove_objects(folder)
            return


def _remove_objects(folder: Path) -> None:
    for objects in [*folder.rglob("CMakeFiles")]:
        if objects.exists():  # else it lay in another that has gone
            shutil.rmtree(objects)


def run_compiler(command: Sequence[str], heard: Callable[[str], None]) -> str | None:
    """None if it did its work, else its words on why not; `heard` gets every line as it comes.

    An interruption ends the command and all it has started.
    """
    lines: list[str] = []
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                heard(lines[-1])
        except KeyboardInterrupt:
            # The group, as CMake does not end the compilers it has started.
            os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode == 0:
        return None
    return f"{' '.join(command[:3])} … failed:\n{why_it_failed(lines)}"


def why_it_failed(lines: Sequence[str]) -> str:
    """At most 30 lines from the first that names an error, or the last 30 if none does."""
    first = next((n for n, line in enumerate(lines) if _ERROR.search(line)), -KEPT_LINES)
    return "\n".join(lines[first:][:KEPT_LINES])

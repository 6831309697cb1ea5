"""The kernels' library to run: the one named, else the one carried here, else one compiled here.

    python library.py OUTPUT.json [--host-form]   find it
    python library.py --carry [SM]                compile it to carry: out/gpu-carried

The launchers alone, without plugins: TensorRT's headers are not needed. A carried one is taken if
it was made of these very sources for this GPU, and compiling there is what is left if not.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch

from legokv.errors import LegokvError, PluginBuildFailed
from legokv.kernels.build_gpu import (
    LIBRARY_NAME,
    SOURCE,
    PluginBuild,
    build_host_kernels,
    build_plugin_library,
)
from legokv.kernels.gpu import Launchers

OUT = Path(__file__).resolve().parents[2] / "out"
CARRIED = OUT / "gpu-carried"
DIGEST_FILE = "sources.sha256"
VARIABLE = "LEGOKV_PLUGIN_LIBRARY"
H200 = "90"


def find_library(host_form: bool) -> tuple[Path, str]:
    """The library and where it is from; ToolchainMissing if it can be neither built nor found.

    PluginBuildFailed, in the compiler's words, if it does not compile.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named), f"named by {VARIABLE}"
    if host_form:
        folder = build_host_kernels(PluginBuild(OUT, jobs=os.cpu_count() or 2), say)
        return folder / "liblegokv_host_kernels.so", "the kernels' host form"
    major, minor = torch.cuda.get_device_capability()
    return carried_or_built(launcher_build(f"{major}{minor}"), CARRIED)


def launcher_build(architecture: str) -> PluginBuild:
    """The launchers alone, with machine code for one architecture."""
    return PluginBuild(
        OUT,
        folder=f"launchers-{architecture}",
        architectures=(f"{architecture}-real",),
        jobs=os.cpu_count() or 2,
        with_plugins=False,
    )


def carried_or_built(build: PluginBuild, carried: Path) -> tuple[Path, str]:
    """The carried library if it is of these sources and this GPU, else the build's."""
    why_not = unfit(carried, build)
    if why_not is None:
        return carried / LIBRARY_NAME, "carried here, made of these sources"
    say(f"compiling here, as {why_not}")
    try:
        return build_plugin_library(build, say), f"built for sm_{build.architectures[0]}"
    except LegokvError as error:
        raise PluginBuildFailed(f"{error}. And {why_not}") from error


def unfit(carried: Path, build: PluginBuild) -> str | None:
    """Why the library in `carried` can't be taken; None if it can."""
    library, digest = carried / LIBRARY_NAME, carried / DIGEST_FILE
    if not (library.is_file() and digest.is_file()):
        return f"{carried} has no library with its {DIGEST_FILE}"
    made_of, architecture = digest.read_text(encoding="utf-8").split()
    if made_of != source_digest(build.source):
        return f"the library in {carried} is of other sources"
    if architecture != build.architectures[0]:
        return f"the library in {carried} is for {architecture}, not {build.architectures[0]}"
    return None


def source_digest(source: Path) -> str:
    """SHA-256 over what a library is compiled from, names and contents."""
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*")):
        if file.suffix in (".h", ".cuh", ".cu", ".cpp", ".cmake", ".map", ".txt"):
            digest.update(str(file.relative_to(source)).encode() + file.read_bytes())
    return digest.hexdigest()


def carry(architecture: str) -> Path:
    """Compile the launchers for a GPU that is elsewhere, with what says of which sources."""
    build = launcher_build(architecture)
    CARRIED.mkdir(parents=True, exist_ok=True)
    made = shutil.copyfile(build_plugin_library(build, say), CARRIED / LIBRARY_NAME)
    digest = f"{source_digest(SOURCE)} {build.architectures[0]}\n"
    (CARRIED / DIGEST_FILE).write_text(digest, encoding="utf-8")
    return made


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    carries = "--carry" in sys.argv
    names = [word for word in sys.argv[1:] if not word.startswith("--")]
    try:
        if carries:
            library, origin = carry(*names[:1] or [H200]), "to carry"
        else:
            library, origin = find_library(host_form="--host-form" in sys.argv)
    except LegokvError as error:
        print(f"library.py: {error}", file=sys.stderr)
        return 1
    info = Launchers(library).info()
    say(f"{library}: {origin}, {info['form']}, {library.stat().st_size / 2**20:.1f} MiB")
    if not carries:
        found = {"path": str(library), "origin": origin, "architectures": info["architectures"]}
        Path(names[0]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The compiled plugins: where they lie, how they are built from plugins/, and their digest."""

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from legokv.errors import PluginBuildFailed, ToolMisnamed
from legokv.kernels.toolchain import (
    drop_foreign_cache,
    find_cmake,
    nvcc_or_wheels,
    run_compiler,
    tensorrt_headers,
)
from legokv.version import VERSION

SOURCE = Path(__file__).resolve().parents[3] / "plugins"
LIBRARY_NAME = "liblegokv_plugins.so"
# One cubin for each GPU family and, by the bare number, PTX that later ones compile for themselves.
ARCHITECTURES = ("80-real", "86-real", "89-real", "90")
_COMPILER = "CMAKE_CUDA_COMPILER"

Say = Callable[[str], None]


@dataclass(frozen=True)
class PluginBuild:
    """What to build where. `out` holds what is fetched and, under `folder`, CMake's files.

    with_plugins: TensorRT's plugins, for which its headers are needed, around the launchers.
    """

    out: Path
    folder: str = "plugins"
    source: Path = SOURCE
    architectures: tuple[str, ...] = ARCHITECTURES
    jobs: int = 2
    with_plugins: bool = True


def build_plugin_library(build: PluginBuild, say: Say) -> Path:
    """Compile the plugin library, or only what changed since; its path.

    ToolchainMissing if there is no compiler or header to be had, ToolMisnamed where the environment
    names a wrong one; PluginBuildFailed with the compiler's words if it does not compile.
    """
    nvcc = nvcc_or_wheels(build.out / "cuda-13.0", say)
    options = {"LEGOKV_PLUGINS": "OFF"}
    if build.with_plugins:
        headers = tensorrt_headers(build.out / "downloads", say)
        options = {"LEGOKV_PLUGINS": "ON", "LEGOKV_TENSORRT_INCLUDE": str(headers)}
    say(f"Compiling the plugins with {nvcc} for {', '.join(build.architectures)}")
    folder = build.out / build.folder
    options |= {"LEGOKV_ARCHITECTURES": ";".join(build.architectures), _COMPILER: str(nvcc)}
    _cmake(build, folder, options, "legokv_plugins", say)
    return folder / LIBRARY_NAME


def build_plugin_test(build: PluginBuild, say: Say) -> Path:
    """Compile the program that drives the plugin objects on a CPU; needs a built library."""
    folder = build.out / build.folder
    _cmake(build, folder, {}, "test_plugins", say)
    return folder / "tests" / "test_plugins"


def build_host_kernels(build: PluginBuild, say: Say) -> Path:
    """Compile the kernels' host form and its test programs, no CUDA needed; their folder."""
    folder = build.out / "plugins-host"
    _cmake(build, folder, {"LEGOKV_CUDA": "OFF"}, "host_tests", say)
    return folder / "tests"


def library_digest(library: Path) -> str:
    """SHA-256 of the library file, which engine.json keeps beside a plan."""
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _cmake(
    build: PluginBuild, folder: Path, options: Mapping[str, str], target: str, say: Say
) -> None:
    _refuse_semicolons([build.source, folder, *options.values()], options)
    cmake = str(find_cmake())
    places = {"CMAKE_HOME_DIRECTORY": build.source, "CMAKE_CACHEFILE_DIR": folder}
    if _COMPILER in options:
        places[_COMPILER] = Path(options[_COMPILER])
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    with _alone_in(folder, say):
        drop_foreign_cache(folder, places, say)
        configure = [cmake, "-S", str(build.source), "-B", str(folder), *definitions]
        _run([*configure, f"-DLEGOKV_VERSION={VERSION}"], folder, say)
        compile_target = [cmake, "--build", str(folder), "--target", target]
        _run([*compile_target, "--parallel", str(build.jobs)], folder, say)


def _refuse_semicolons(places: Sequence[str | Path], options: Mapping[str, str]) -> None:
    """ToolMisnamed for a path that CMake would take for two; lists of ours are meant so."""
    lists = options.get("LEGOKV_ARCHITECTURES")
    for place in map(str, places):
        if ";" in place and place != lists:
            raise ToolMisnamed(
                f"{place} has a ';' in it, at which CMake splits paths: choose a folder without"
            )


@contextmanager
def _alone_in(folder: Path, say: Say) -> Iterator[None]:
    """Wait until no other process builds in `folder`: CMake's files are one build's at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another build in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], folder: Path, say: Say) -> None:
    """Run, saying each line of progress."""
    failure = run_compiler(command, lambda line: say(line) if line.startswith("[") else None)
    if failure is not None:
        raise PluginBuildFailed(
            f"{failure}\nIf its sources compile elsewhere, remove {folder} and build again"
        )

"""The plugin library to run: the one named, else one built for this GPU, else one carried here.

A carried one is taken only where there is nothing to compile with: sources that do not compile are
a failure, for what ran would not be them. python library.py OUTPUT.json [--host-form]
"""

import json
import os
import sys
from pathlib import Path

import torch

from legokv.errors import LegokvError, PluginBuildFailed, ToolchainMissing
from legokv.kernels.build_gpu import (
    LIBRARY_NAME,
    PluginBuild,
    build_host_kernels,
    build_plugin_library,
)
from legokv.kernels.gpu import Launchers

OUT = Path(__file__).resolve().parents[2] / "out"
VARIABLE = "LEGOKV_PLUGIN_LIBRARY"


def find_library(host_form: bool) -> tuple[Path, str]:
    """The library and where it is from; ToolchainMissing if it can be neither built nor found.

    PluginBuildFailed, in the compiler's words, if it does not compile.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named), f"named by {VARIABLE}"
    jobs = os.cpu_count() or 2
    if host_form:
        folder = build_host_kernels(PluginBuild(OUT, jobs=jobs), say)
        return folder / "liblegokv_host_kernels.so", "the kernels' host form"
    major, minor = torch.cuda.get_device_capability()
    architecture = f"{major}{minor}"
    build = PluginBuild(OUT, folder="plugins-gpu", architectures=(architecture,), jobs=jobs)
    return built_or_carried(build, OUT / "plugins" / LIBRARY_NAME)


def built_or_carried(build: PluginBuild, carried: Path) -> tuple[Path, str]:
    """The build's library, or `carried` where something to compile with is missing."""
    try:
        return build_plugin_library(build, say), f"built for sm_{build.architectures[0]}"
    except ToolchainMissing as error:
        if not carried.is_file():
            raise
        return carried, f"carried here, since it can't be built: {error}"
    except PluginBuildFailed as error:
        if not carried.is_file():
            raise
        raise PluginBuildFailed(
            f"{error}. {VARIABLE}={carried} runs the one carried here"
        ) from None


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    try:
        library, origin = find_library(host_form="--host-form" in sys.argv)
    except LegokvError as error:
        print(f"library.py: {error}", file=sys.stderr)
        return 1
    info = Launchers(library).info()
    say(f"{library}: {origin}, {info['form']}")
    found = {"path": str(library), "origin": origin, "architectures": info["architectures"]}
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

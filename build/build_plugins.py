"""Compile the TensorRT plugins: python build/build_plugins.py"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ending import run

from legokv.kernels.build_gpu import ARCHITECTURES, PluginBuild, build_plugin_library

OUT = Path(__file__).resolve().parent.parent / "out"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUT, help="default: out")
    parser.add_argument(
        "--architectures",
        nargs="+",
        default=ARCHITECTURES,
        metavar="SM",
        help=f"as in CMAKE_CUDA_ARCHITECTURES; default: {' '.join(ARCHITECTURES)}",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="compilers at once")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    return run("build_plugins.py", partial(load, parse_arguments(arguments)))


def load(parsed: argparse.Namespace) -> Callable[[], None]:
    from legokv.kernels.gpu import Launchers

    plugins = PluginBuild(
        parsed.output, architectures=tuple(parsed.architectures), jobs=parsed.jobs
    )

    def build() -> None:
        library = build_plugin_library(plugins, say)
        info = Launchers(library).info()
        say(f"{library}: {library.stat().st_size / 2**20:.1f} MiB, ops {', '.join(info['ops'])}")

    return build


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

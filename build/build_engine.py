"""Build an engine folder from a checkpoint: python build/build_engine.py --model llama"""

import argparse
import signal
import sys
import time
from pathlib import Path

from legokv.checkpoint.source import PRESETS, checkpoint_folder
from legokv.compile.backends import BACKENDS, PLAN_BACKENDS, choose_backend, this_machine
from legokv.engine_build import DTYPES, EngineSettings, build_engine_folder
from legokv.errors import InvalidRequest, LegokvError
from legokv.plugin_library import PluginBuild, build_plugin_library
from legokv.profiles import PlanLimits

OUT = Path(__file__).resolve().parent.parent / "out"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(PRESETS), default="llama", help="preset")
    parser.add_argument("--checkpoint", type=Path, help="Hugging Face folder or .gguf file")
    parser.add_argument("--name", help="engine's name; default: the preset's or checkpoint's")
    parser.add_argument("--output", type=Path, help="default: out/engines/NAME")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--page-size", type=int, default=16, metavar="TOKENS")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument(
        "--onnx", action=argparse.BooleanOptionalAction, default=True, help="write model.onnx"
    )
    parser.add_argument("--force", action="store_true", help="build even if it is up to date")
    parser.add_argument(
        "--keep-failed",
        action="store_true",
        help="write an engine that fails the check of linked against full logits, too",
    )
    add_plan_arguments(parser.add_argument_group("of a plan"))
    return parser.parse_args(arguments)


def add_plan_arguments(group: "argparse._ArgumentGroup") -> None:
    usual = PlanLimits()
    for option, value, text in (
        ("--max-step-tokens", usual.max_step_tokens, "tokens one step computes at most"),
        ("--max-sequences", usual.max_sequences, "sequences in one step at most"),
        ("--max-import-pages", usual.max_import_pages, "stored pages arriving in a step at most"),
    ):
        group.add_argument(option, type=int, default=value, metavar="N", help=f"{text}; {value}")
    group.add_argument(
        "--plugin-library", type=Path, help="default: compiled from plugins/ as needed"
    )


def plugin_library(arguments: argparse.Namespace, backend: str) -> Path | None:
    """The compiled plugins a plan is built with; None for torch, which needs none on a CPU."""
    if backend not in PLAN_BACKENDS:
        return None
    if not arguments.onnx:
        raise InvalidRequest(f"--backend {backend} builds a plan from model.onnx: drop --no-onnx")
    given: Path | None = arguments.plugin_library
    if given is not None and not given.is_file():
        raise InvalidRequest(f"--plugin-library {given} does not exist: run build/build_plugins.py")
    return given or build_plugin_library(PluginBuild(OUT), say)


def build(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    name = arguments.name or (
        arguments.checkpoint.stem if arguments.checkpoint else arguments.model
    )
    output = arguments.output or OUT / "engines" / name
    backend = choose_backend(arguments.backend, this_machine(), say)
    checkpoint = checkpoint_folder(arguments.model, arguments.checkpoint, OUT / "checkpoints", say)
    settings = EngineSettings(
        name,
        arguments.dtype,
        arguments.page_size,
        backend,
        exports_onnx=arguments.onnx,
        plugin_library=plugin_library(arguments, backend),
        limits=PlanLimits(
            arguments.max_step_tokens, arguments.max_sequences, arguments.max_import_pages
        ),
    )
    say(f"Checking {checkpoint} and digesting its weights")
    written = build_engine_folder(
        checkpoint,
        output,
        settings,
        force=arguments.force,
        keep_failed=arguments.keep_failed,
        say=say,
    )
    state = "written" if written else "already up to date, kept (--force builds it again)"
    say(f"Engine {output} {state}, {time.monotonic() - started:.1f} s")


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    # A build that is told to end ends as on Ctrl-C: its process and what it has begun with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        build(parse_arguments(arguments))
    except LegokvError as error:
        print(f"build_engine.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("build_engine.py: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The options of build_engine.py, and the build they ask for."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from legokv.build.engine import BuildSettings, build_engine_folder
from legokv.built.folder import read_engine_folder
from legokv.built.plan_facts import PLAN_FLAGS
from legokv.built.plan_limits import PlanLimits
from legokv.checkpoint.source import PRESETS, checkpoint_folder
from legokv.checkpoint.tensor_table import read_tensor_table
from legokv.checkpoint.weights import form_of_few_bits
from legokv.errors import InvalidRequest
from legokv.kernels.build_gpu import PluginBuild, build_plugin_library
from legokv.model.dtypes import DTYPES, PLAN_FORMS, QUANTIZE_WORDS, WEIGHT_FORMS
from legokv.plan.backends import BACKENDS, PLAN_BACKENDS, choose_backend, this_machine
from legokv.step.graph import IMPORTS

ROOT = Path(__file__).resolve().parent.parent
OUT, SAMPLES = ROOT / "out", ROOT / "examples" / "documents"
LIMITS = {
    "max_step_tokens": "tokens one step computes at most",
    "max_sequences": "sequences in one step at most",
    "max_import_pages": "stored pages arriving in a step at most",
}

# As TensorRT's builder flags are called.
FLAGS = {
    "weight_streaming": "let the runtime keep a part of the weights on the host",
    "refit": "let weights be exchanged in the built plan",
}


def parse_arguments(description: str | None, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=sorted(PRESETS), default="llama", help="preset")
    parser.add_argument("--checkpoint", type=Path, help="Hugging Face folder or .gguf file")
    parser.add_argument("--name", help="engine's name; default: the preset's or checkpoint's")
    parser.add_argument("--output", type=Path, help="default: out/engines/NAME")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument(
        "--weights",
        default="model",
        metavar="|".join(WEIGHT_FORMS),
        help="int8, int4: in 8 or 4 bits a number, less to read for a CPU's decode steps",
    )
    parser.add_argument("--page-size", type=int, default=16, metavar="TOKENS")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="auto keeps a plan that is there already, whichever backend built it",
    )
    parser.add_argument(
        "--onnx", action=argparse.BooleanOptionalAction, default=True, help="write model.onnx"
    )
    parser.add_argument("--force", action="store_true", help="build even if it is up to date")
    parser.add_argument(
        "--keep-failed",
        action="store_true",
        help="write an engine that fails the check of linked against full logits, too",
    )
    _add_plan_arguments(parser.add_argument_group("of a plan"))
    return parser.parse_args(arguments)


def build(arguments: argparse.Namespace) -> None:
    """Make the engine folder that was asked for, and say what it is."""
    started = time.monotonic()
    for option in ("checkpoint", "output", "plugin_library"):
        _refuse_bytes(option, getattr(arguments, option))
    # First: what goes together nowhere is not for want of something on this machine.
    _settings(arguments, arguments.backend)
    settings = _settings(arguments, choose_backend(arguments.backend, this_machine(), say))
    output = arguments.output or OUT / "engines" / settings.name
    checkpoint = checkpoint_folder(arguments.model, arguments.checkpoint, OUT / "checkpoints", say)
    if arguments.quantize is None:
        settings = _as_the_checkpoint(settings, checkpoint)
    say(f"Checking {checkpoint} and digesting its weights")
    written = build_engine_folder(
        checkpoint,
        output,
        settings,
        force=arguments.force,
        keep_failed=arguments.keep_failed,
        say=say,
    )
    gate = read_engine_folder(output).gate
    if gate is not None:
        say(f"Linked against full logits: {gate}; {gate.cost}")
    state = "written" if written else "already up to date, kept (--force builds it again)"
    say(f"Engine {output} {state}, {time.monotonic() - started:.1f} s")


def say(line: str) -> None:
    print(line, flush=True)


def _add_plan_arguments(group: "argparse._ArgumentGroup") -> None:
    usual = PlanLimits()
    for name, text in LIMITS.items():
        group.add_argument(
            _option(name), type=int, metavar="N", help=f"{text}; {getattr(usual, name)}"
        )
    group.add_argument(
        "--import",
        dest="imports",
        choices=IMPORTS,
        help="what puts stored pages into the pools: a launch before the step, or a node; stream",
    )
    for flag, text in FLAGS.items():
        group.add_argument(_option(flag), action="store_true", default=None, help=text)
    group.add_argument(
        "--quantize",
        choices=("none", *PLAN_FORMS),
        help="layers' matrices as FP8, with their products' inputs, or alone as INT4; default: as "
        "the checkpoint has them",
    )
    group.add_argument(
        "--plugin-library", type=Path, help="default: compiled from plugins/ as needed"
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse_bytes(option: str, path: Path | None) -> None:
    """InvalidRequest for a path that is no text: onnx and TensorRT take UTF-8 alone."""
    try:
        str(path and path.absolute()).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{_option(option)} {str(path)!a} can't be read as "
            f"{sys.getfilesystemencoding()}: set PYTHONUTF8=1, or choose a path in UTF-8"
        ) from None


def _settings(arguments: argparse.Namespace, backend: str) -> BuildSettings:
    source = _checkpoint_name(arguments.checkpoint) if arguments.checkpoint else arguments.model
    limits = {name: value for name in LIMITS if (value := getattr(arguments, name)) is not None}
    return BuildSettings(
        source if arguments.name is None else arguments.name,
        arguments.dtype,
        arguments.page_size,
        backend,
        exports_onnx=arguments.onnx,
        plugin_library=_plugin_library(arguments, backend),
        limits=replace(PlanLimits(), **limits),
        any_plan=arguments.backend == "auto",
        imports=arguments.imports or "stream",
        weights=_weights(arguments),
        samples=tuple(file.read_text(encoding="utf-8") for file in sorted(SAMPLES.glob("*.txt"))),
        flags=tuple(flag for flag in PLAN_FLAGS if getattr(arguments, flag)),
    )


def _as_the_checkpoint(settings: BuildSettings, checkpoint: Path) -> BuildSettings:
    """The settings, with what the checkpoint has of few bits in a plan that can have it: one that
    is built, or one that is there where auto's choice builds none."""
    if settings.backend not in PLAN_BACKENDS:
        return replace(settings, as_stored=settings.any_plan)
    takes = PLAN_BACKENDS[settings.backend].takes_qdq
    form = form_of_few_bits(read_tensor_table(checkpoint)) if takes else "model"
    if form == "model" or settings.dtype != "bfloat16":
        return settings
    bits = QUANTIZE_WORDS[form].upper()
    say(f"The checkpoint has {bits} weights, and so has its plan; --quantize none expands them")
    return replace(settings, weights=form)


def _weights(arguments: argparse.Namespace) -> str:
    """The form of the weights; InvalidRequest where a CPU's and a plan's are asked for together."""
    if arguments.quantize in (None, "none"):
        return str(arguments.weights)
    if arguments.weights != "model":
        raise InvalidRequest(
            f"--weights {arguments.weights} is for CPUs and --quantize {arguments.quantize} for a "
            "plan: leave out one of them"
        )
    return PLAN_FORMS[arguments.quantize]


def _checkpoint_name(checkpoint: Path) -> str:
    """A file's name without .gguf; a folder's is whole, for Llama-3.2-1B is not Llama-3."""
    return checkpoint.absolute().name.removesuffix(".gguf")


def _plugin_library(arguments: argparse.Namespace, backend: str) -> Callable[[], Path] | None:
    """What gives the plugins a plan is built with; None for torch, which needs none on a CPU, and
    for auto, which is not chosen yet."""
    if backend == "auto":
        return None
    if backend not in PLAN_BACKENDS:
        _refuse_plan_options(arguments, backend)
        return None
    if not arguments.onnx:
        raise InvalidRequest(f"--backend {backend} builds a plan from model.onnx: drop --no-onnx")
    library: Path | None = arguments.plugin_library
    if library is None:
        return partial(build_plugin_library, PluginBuild(OUT), say)
    if not library.is_file():
        raise InvalidRequest(
            f"--plugin-library {library} does not exist: run build/build_plugins.py"
        )
    return lambda: library


def _refuse_plan_options(arguments: argparse.Namespace, backend: str) -> None:
    for name in (*LIMITS, "plugin_library", "imports", *FLAGS):
        if getattr(arguments, name) is not None:
            option = "--import" if name == "imports" else _option(name)
            raise InvalidRequest(
                f"{option} is of a plan, and backend {backend} builds none: "
                "leave it out, or choose a --backend that does, as tensorrt-rtx"
            )

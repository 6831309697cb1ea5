"""Build an engine folder from a checkpoint: python build/build_engine.py --model llama"""

import argparse
import sys
import time
from pathlib import Path

from legokv.checkpoint.source import PRESETS, checkpoint_folder
from legokv.engine_build import DTYPES, EngineSettings, build_engine_folder
from legokv.errors import LegokvError

OUT = Path(__file__).resolve().parent.parent / "out"
BACKENDS = ("auto", "torch")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(PRESETS), default="llama", help="preset")
    parser.add_argument("--checkpoint", type=Path, help="Hugging Face folder or .gguf file")
    parser.add_argument("--name", help="engine's name; default: the preset's or checkpoint's")
    parser.add_argument("--output", type=Path, help="default: out/engines/NAME")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--page-size", type=int, default=16, metavar="TOKENS")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--force", action="store_true", help="build even if it is up to date")
    return parser.parse_args(arguments)


def chosen_backend(requested: str) -> str:
    if requested == "auto":
        say("Backend auto: torch, the only one this version has")
        return "torch"
    return requested


def build(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    name = arguments.name or (
        arguments.checkpoint.stem if arguments.checkpoint else arguments.model
    )
    output = arguments.output or OUT / "engines" / name
    backend = chosen_backend(arguments.backend)
    checkpoint = checkpoint_folder(arguments.model, arguments.checkpoint, OUT / "checkpoints", say)
    settings = EngineSettings(name, arguments.dtype, arguments.page_size, backend)
    say(f"Checking {checkpoint} and digesting its weights")
    written = build_engine_folder(checkpoint, output, settings, force=arguments.force)
    state = "written" if written else "already up to date, kept (--force builds it again)"
    say(f"Engine {output} {state}, {time.monotonic() - started:.1f} s")


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
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

"""The `legokv` command: its arguments, and what it prints."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import legokv
from legokv.built.folder import read_engine_folder
from legokv.commands.keys import add_keys_parser, run_keys_command
from legokv.errors import LegokvError, ServerError, sentence_of
from legokv.serving.api_keys import read_keys
from legokv.serving.front.exposure import exposed
from legokv.serving.front.process import model_environment, new_brief, running_front
from legokv.serving.log import tell
from legokv.serving.settings import Settings
from legokv.serving.settings_sources import add_flags, flags_in, settings_from
from legokv.serving.triton.install import model_repository
from legokv.serving.triton.processes import raise_descriptor_limit, server_folder, with_ports
from legokv.serving.triton.restarts import Restarts
from legokv.serving.triton.server import Place, TritonServer, running_server
from legokv.text.formats import PromptFormats
from legokv.text.tokenizer import Tokenizer
from legokv.version import VERSION

Say = Callable[[str, dict[str, object]], None]
StartServer = Callable[[], AbstractContextManager[TritonServer]]

PRIVATE_UMASK = 0o077
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status, 1 for an error that is printed, 130 for Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    # For all that is written and for those who are started: texts are their owner's alone.
    usual = os.umask(PRIVATE_UMASK)
    try:
        if parsed.command == "cache":
            return _cache(parsed)
        if parsed.command == "keys":
            return run_keys_command(parsed)
        _serve(parsed)
    except (LegokvError, OSError) as error:
        print(f"legokv: {sentence_of(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("legokv: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        os.umask(usual)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="legokv", description=legokv.__doc__)
    parser.add_argument("--version", action="version", version=f"legokv {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="answer over HTTP and gRPC until interrupted",
        description="Settings come from --config, then LEGOKV_ variables, then these options.",
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    serve.add_argument("--format", choices=("text", "json"), default="text", help="of what it says")
    add_flags(serve)
    add_cache_parser(commands)
    add_keys_parser(commands)
    return parser


def _cache(parsed: argparse.Namespace) -> int:
    # Here, for it brings torch, which takes seconds that a starting server need not wait.
    from legokv.commands.cache import run_cache_command

    return run_cache_command(parsed)


def _serve(parsed: argparse.Namespace) -> None:
    settings = settings_from(parsed.config, os.environ, flags_in(parsed))
    read_engine_folder(settings.engine)
    # A template or switch that is wrong is said here, not by a model's process in Triton's log.
    PromptFormats(Tokenizer.open(settings.engine), settings.switches).of({})
    if settings.keys_file is not None:
        read_keys(settings.keys_file)
    settings = with_ports(settings)
    raise_descriptor_limit()
    say = _say_json if parsed.format == "json" else _say_text
    say("settings", settings.shown())
    for line in exposed(settings):
        tell(f"legokv: {line}")
    with server_folder() as folder:
        brief = new_brief(settings, folder, model_repository())
        with running_front(settings, brief) as front:
            variables = model_environment(settings, brief)
            place = Place(None if settings.expose_triton == "on" else folder, variables)
            _serve_until_stopped(settings, partial(running_server, settings, place, front), say)
    say("stopped", {})


def _serve_until_stopped(settings: Settings, start: StartServer, say: Say) -> None:
    """Start the server again each time it was lost, as often and after as long as Restarts has."""
    stop_asked = threading.Event()
    restarts = Restarts()
    while not stop_asked.is_set():
        ready = False
        try:
            with start() as server:
                _pass_signals_on(server, stop_asked)
                server.wait_until_ready()
                if not server.stopping:
                    say("ready", _addresses(settings))
                    restarts.was_ready()
                    ready = True
                server.wait()
        except ServerError as error:
            if stop_asked.is_set():
                return
            seconds = restarts.seconds_to_wait(ready=ready)
            if seconds is None:
                raise
            _say_restarting(say, error)
            stop_asked.wait(seconds)


def _pass_signals_on(server: TritonServer, stop_asked: threading.Event) -> None:
    def stop(*_: object) -> None:
        stop_asked.set()
        server.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    # A signal that came before went to the server before this one.
    if stop_asked.is_set():
        server.stop()


def _say_restarting(say: Say, error: ServerError) -> None:
    reason = sentence_of(error)
    tell(f"legokv: {reason}; the server starts again")
    say("restarting", {"reason": reason})


def _addresses(settings: Settings) -> dict[str, object]:
    host = _in_address(settings.triton_host)
    api_host = _in_address(settings.host)
    api = {"api": f"http://{api_host}:{settings.api_port}"} if settings.api == "on" else {}
    return {
        **api,
        "http": f"http://{host}:{settings.http_port}",
        "grpc": f"{host}:{settings.grpc_port}",
        "metrics": f"http://{host}:{settings.metrics_port}/metrics",
    }


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say_json(event: str, facts: dict[str, object]) -> None:
    _print(json.dumps({"event": event, **facts}, allow_nan=False))


def _say_text(event: str, facts: dict[str, object]) -> None:
    _print("\n".join([event, *(f"  {name} = {value}" for name, value in facts.items())]))


def _print(lines: str) -> None:
    # At once, also where Python does not buffer: standard error may be the same file.
    sys.stdout.write(f"{lines}\n")
    sys.stdout.flush()


def add_cache_parser(commands: Any) -> None:
    """Add `cache` and its commands to argparse's subparsers."""
    cache = commands.add_parser("cache", help="look at, check, empty, export or import the cache")
    kinds = cache.add_subparsers(dest="cache_command", required=True)
    common = _cache_options(("engine", "cache_dir", "redis_url"))
    kinds.add_parser("stats", parents=[common], help="documents, chunks and bytes by namespace")
    kinds.add_parser(
        "verify",
        parents=[common],
        help="read every file, remove what is damaged; status 1 if anything was wrong",
    )
    clear = kinds.add_parser("clear", parents=[common], help="remove stored KV")
    clear.add_argument("--documents", action="store_true", help="delete the documents as well")
    export = kinds.add_parser("export", parents=[common], help="write documents and KV to one file")
    load = kinds.add_parser("import", parents=[common], help="take documents and KV from a file")
    models = _cache_options(("cache_dir", "redis_url"))
    kinds.add_parser("models", parents=[models], help="what each model keeps, of all engines")
    forget = kinds.add_parser("forget", parents=[models], help="remove all that a model keeps")
    forget.add_argument("model", metavar="MODEL", help="as `models` calls it")
    for command in (clear, export):
        command.add_argument(
            "--namespace", action="append", help="only of this one; may be given again"
        )
    for command in (export, load):
        command.add_argument("file", type=Path, metavar="FILE")


def _cache_options(settings: Sequence[str]) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    add_flags(common, settings)
    common.add_argument("--format", choices=("text", "json"), default="text", help="of the output")
    return common


if __name__ == "__main__":
    sys.exit(main())

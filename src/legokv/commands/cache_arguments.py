"""The arguments of `legokv cache`. Imports no torch, so that `legokv serve` starts without it."""

import argparse
from pathlib import Path
from typing import Any

from legokv.serving.settings_sources import add_flags


def add_cache_parser(commands: Any) -> None:
    """Add `cache` and its commands to argparse's subparsers."""
    cache = commands.add_parser("cache", help="look at, check, empty, export or import the cache")
    kinds = cache.add_subparsers(dest="cache_command", required=True)
    common = _common()
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
    for command in (clear, export):
        command.add_argument(
            "--namespace", action="append", help="only of this one; may be given again"
        )
    for command in (export, load):
        command.add_argument("file", type=Path, metavar="FILE")


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    add_flags(common, ("engine", "cache_dir", "redis_url"))
    common.add_argument("--format", choices=("text", "json"), default="text", help="of the output")
    return common

"""`legokv keys`: add, list and revoke the API keys of a file."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from legokv.commands import Facts, print_facts
from legokv.serving.api_keys import MAX_LIMIT, ApiKey, add_key, read_keys, revoke_key

_RIGHTS = ("namespace", "requests_per_minute", "tokens_per_minute", "stored_bytes", "metrics")


def add_keys_parser(commands: Any) -> None:
    """Add `keys` and its commands to argparse's subparsers."""
    keys = commands.add_parser("keys", help="add, list or revoke API keys")
    kinds = keys.add_subparsers(dest="keys_command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--file", type=Path, required=True, metavar="FILE", help="the keys' file")
    common.add_argument("--format", choices=("text", "json"), default="text", help="of the output")
    add = kinds.add_parser("add", parents=[common], help="make a key and print it, this once")
    add.add_argument("name", metavar="NAME", help="who has it; the log calls it so")
    add.add_argument("--namespace", help="the one it reaches (default: NAME)")
    for name, meaning in (
        ("requests-per-minute", "most requests a minute"),
        ("tokens-per-minute", "most tokens a minute, of prompts and answers"),
        ("stored-bytes", "most bytes of the namespace's documents with their KV"),
    ):
        add.add_argument(f"--{name}", type=_number, metavar="N", help=f"{meaning} (default: any)")
    add.add_argument("--metrics", action="store_true", help="it may read the server's metrics")
    kinds.add_parser("list", parents=[common], help="names, namespaces and limits; no key")
    revoke = kinds.add_parser("revoke", parents=[common], help="end a key, at its next request")
    revoke.add_argument("name", metavar="NAME")


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 16 or int(text) > MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 0 to {MAX_LIMIT}")
    return int(text)


def run_keys_command(parsed: argparse.Namespace) -> int:
    """Carry out one of the commands and print its facts; the exit status."""
    file = parsed.file.absolute()
    print_facts(_COMMANDS[parsed.keys_command](file, parsed), parsed.format)
    return 0


def _add(file: Path, parsed: argparse.Namespace) -> Facts:
    rights = {name: getattr(parsed, name) for name in _RIGHTS if getattr(parsed, name) is not None}
    key, kept = add_key(file, parsed.name, rights)
    return {"key": key, "name": kept.name, **_shown(kept)}


def _list(file: Path, parsed: argparse.Namespace) -> Facts:
    return {"keys": {key.name: _shown(key) for key in read_keys(file)}}


def _revoke(file: Path, parsed: argparse.Namespace) -> Facts:
    return {"revoked": revoke_key(file, parsed.name).name}


def _shown(key: ApiKey) -> Facts:
    return {name: value for name, value in asdict(key).items() if name not in ("name", "sha256")}


_COMMANDS = {"add": _add, "list": _list, "revoke": _revoke}

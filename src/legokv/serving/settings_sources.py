"""Reads a server's settings from a TOML file, the environment and flags; nothing is ignored.

The environment wins over the file, a flag over both. The model processes get the resolved record
back through their environment.
"""

import argparse
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

from legokv.built.settings import described
from legokv.errors import InvalidRequest
from legokv.serving.settings import PREFIX, SETTINGS, Settings

FREE_PORT = "auto"
_KNOWN = {item.name: item for item in SETTINGS}
# Kubernetes' variables of a service, and Docker's of a link.
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
_PORT_OF_A_SERVICE = re.compile(r"(\w+_)?PORT")
_OF_A_SERVICE = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO|START|END))?)"
    r"|NAME|ENV_\w+"
)


def add_flags(parser: argparse.ArgumentParser, names: Collection[str] = tuple(_KNOWN)) -> None:
    """Add an option for each of the settings; what is not given is not in the parsed arguments."""
    for name in names:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="DIR" if _kind(_KNOWN[name]) is Path else name.rsplit("_", 1)[-1].upper(),
            default=argparse.SUPPRESS,
            help=_help(_KNOWN[name]),
            **_switch(_KNOWN[name]),
        )


def _switch(item: Field[Any]) -> dict[str, Any]:
    """What makes an option that is off unless given one that needs no value."""
    is_switch = item.metadata.get("choices") == ("off", "on")
    return {"nargs": "?", "const": "on"} if is_switch else {}


def _help(item: Field[Any]) -> str:
    """What a setting means and is where nobody says; argparse reads percent signs."""
    meaning = described(item)
    if item.default_factory is not MISSING:
        meaning += f" (default: {item.default_factory()})"
    elif item.default is not MISSING:
        meaning += f" (default: {item.default})"
    return meaning.replace("%", "%%")


def flags_in(parsed: argparse.Namespace) -> dict[str, object]:
    """The settings among parsed arguments, by name."""
    return {name: value for name, value in vars(parsed).items() if name in _KNOWN}


def settings_from(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, object]
) -> Settings:
    """The record from a TOML file, then LEGOKV_ variables, then flags, later ones winning.

    InvalidRequest that names a setting unknown in any of them, or a value of the wrong kind.
    LEGOKV_ variables that a cluster makes of a service's name are none of ours.
    """
    values: dict[str, Any] = {}
    for source, named in (
        (str(file), {} if file is None else _read_toml(file)),
        ("the environment", _prefixed(environment)),
        ("the command line", flags),
    ):
        for name, value in named.items():
            values[name] = _converted(name, value, source)
    if "engine" not in values:
        raise InvalidRequest("no engine folder given: pass --engine DIR")
    return Settings(**values)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            return tomllib.load(opened)
    except OSError as error:
        raise InvalidRequest(f"settings file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"settings file {file} is not TOML: {error}") from None


def _prefixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and not _is_injected(name.removeprefix(PREFIX), value)
    }


def _is_injected(name: str, value: str) -> bool:
    """Whether a cluster made this variable for a service called `legokv`, or `legokv-` and more.

    A `legokv-http` has the name of a setting, with an address no port could be.
    """
    if name.lower() in _KNOWN:
        return _ADDRESS.match(value) is not None
    return _OF_A_SERVICE.fullmatch(name) is not None or (
        _PORT_OF_A_SERVICE.fullmatch(name) is not None and _ADDRESS.match(value) is not None
    )


def _converted(name: str, value: object, source: str) -> object:
    if name not in _KNOWN:
        raise InvalidRequest(
            f"unknown setting '{name}' in {source}; known are {', '.join(sorted(_KNOWN))}"
        )
    kind = _kind(_KNOWN[name])
    try:
        return _CONVERTERS[kind](name, value)
    except ValueError:
        raise InvalidRequest(f"{name} in {source} is no {_NOUNS[kind]}: {value!r}") from None


def _kind(item: Field[Any]) -> Any:
    return str if "choices" in item.metadata else item.type


def _whole_number(name: str, value: object) -> int:
    if name.endswith("_port") and value == FREE_PORT:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(value)
    return int(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _path(name: str, value: object) -> Path:
    # Absolute: the model processes do not run in the caller's folder.
    path = value if isinstance(value, Path) else Path(_text(name, value))
    return path.expanduser().absolute()


_CONVERTERS: dict[Any, Callable[[str, object], object]] = {
    int: _whole_number,
    str: _text,
    Path: _path,
}
_NOUNS: dict[Any, str] = {int: "whole number", str: "text", Path: "path"}

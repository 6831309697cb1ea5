"""A checkpoint's JSON files, read or refused in a sentence: they come from anywhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from legokv.errors import UnsupportedModel, kind_of

JsonObject = Mapping[str, Any]

_POINTER = b"version https://git-lfs.github.com/spec/"


def json_object(path: Path) -> JsonObject:
    """The object in a JSON file; UnsupportedModel if the file is gone or holds something else."""
    try:
        body = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UnsupportedModel(f"{path} is missing: a checkpoint folder must hold it") from None
    return parsed_object(body, str(path))


def parsed_object(body: bytes, where: str) -> JsonObject:
    """The JSON object in `body`, which came from `where`; UnsupportedModel if there is none."""
    try:
        value = json.loads(utf8_text(body, where))
    except ValueError as error:
        raise UnsupportedModel(f"{where} is not JSON: {error}; fetch the file again") from None
    except RecursionError:
        raise UnsupportedModel(f"{where} is not JSON: it is nested too deep to be read") from None
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{where} holds {kind_of(value)}, not a JSON object")
    return value


def utf8_text(body: bytes, where: str) -> str:
    """The text in `body`, its lines ended by \\n alone.

    UnsupportedModel if it is Git LFS's note about the file, or no UTF-8.
    """
    refuse_pointer(body, where)
    try:
        return body.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UnsupportedModel(
            f"{where} is not UTF-8 at byte {error.start} of {len(body)}: fetch the file again"
        ) from None


def refuse_pointer(start: bytes, where: str) -> None:
    """UnsupportedModel if a file that starts so is Git LFS's note about the file, not the file."""
    if start.startswith(_POINTER):
        raise UnsupportedModel(
            f"{where} is a Git LFS pointer, not the file itself: run git lfs pull in its repository"
        )

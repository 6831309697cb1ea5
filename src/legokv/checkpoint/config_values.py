"""Typed values from a checkpoint's JSON files: one of the wrong kind is refused in a sentence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from legokv.errors import UnsupportedModel

JsonObject = Mapping[str, Any]


def json_object(path: Path) -> JsonObject:
    """The object in a JSON file; UnsupportedModel if the file is gone or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedModel(f"{path} is missing: a checkpoint folder must hold it") from None
    except ValueError as error:
        raise UnsupportedModel(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def positive_int(config: JsonObject, key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(f"config.json: {key} must be a positive integer, it is {value!r}")
    return value


def number(config: JsonObject, key: str, default: float) -> float:
    value = optional_number(config, key)
    return default if value is None else value


def optional_number(config: JsonObject, key: str) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise UnsupportedModel(f"config.json: {key} must be a positive number, it is {value!r}")
    return float(value)


def optional_int(config: JsonObject, key: str) -> int | None:
    return None if config.get(key) is None else positive_int(config, key)


def flag(config: JsonObject, key: str) -> bool:
    """A switch that is off where config.json does not name it."""
    value = config.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise UnsupportedModel(f"config.json: {key} must be true or false, it is {value!r}")
    return value


def token_ids(config: JsonObject, key: str) -> tuple[int, ...]:
    """One id, a list of ids, or nothing."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise UnsupportedModel(f"config.json: {key} must be token ids, it is {value!r}")
    return tuple(ids)

"""Typed values from a checkpoint's JSON files: one of the wrong kind is refused in a sentence."""

import math

from legokv.errors import UnsupportedModel
from legokv.text.json_file import JsonObject

# Positions and token ids are int32 in the kernels; no size of a model is near it.
MAX_INT = 2**31 - 1


def nested_object(config: JsonObject, key: str) -> JsonObject:
    """The object under `key`, an empty one where there is none."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UnsupportedModel(f"config.json: {key} must be an object, it is {_shown(value)}")
    return value


def positive_int(config: JsonObject, key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_INT:
        raise UnsupportedModel(
            f"config.json: {key} must be a positive integer of at most {MAX_INT}, it is "
            f"{_shown(value)}"
        )
    return value


def number(config: JsonObject, key: str, default: float) -> float:
    value = optional_number(config, key)
    return default if value is None else value


def optional_number(config: JsonObject, key: str) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    # Compared before it becomes a float: a whole number of JSON's may be larger than any.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < 1e300 or not math.isfinite(value):
        raise UnsupportedModel(
            f"config.json: {key} must be a positive number, it is {_shown(value)}"
        )
    return float(value)


def optional_int(config: JsonObject, key: str) -> int | None:
    return None if config.get(key) is None else positive_int(config, key)


def flag(config: JsonObject, key: str) -> bool:
    """A switch that is off where config.json does not name it."""
    value = config.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise UnsupportedModel(f"config.json: {key} must be true or false, it is {_shown(value)}")
    return value


def token_ids(config: JsonObject, key: str) -> tuple[int, ...]:
    """One id, a list of ids, or nothing."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(_is_id(token) for token in ids):
        raise UnsupportedModel(f"config.json: {key} must be token ids, it is {_shown(value)}")
    return tuple(ids)


def _is_id(token: object) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token <= MAX_INT


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"

"""Types and bounds of what callers ask: one sentence with the value where it is wrong."""

import math
import numbers
from collections.abc import Mapping

import numpy as np

from legokv.errors import InvalidRequest, exact, kind_of

_FLOAT32_BIT = 2.0**-23


def check_whole(name: str, value: object, low: int, high: float = math.inf) -> None:
    """InvalidRequest unless `value` is a whole number from `low` to `high`; true and false are
    none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidRequest(f"{name} is a whole number, not {shown(value)}")
    if not low <= int(value) <= high:
        most = f" to {high}" if math.isfinite(high) else " or more"
        raise InvalidRequest(f"{name} is {low}{most}, not {value}")


def check_number(name: str, value: object, low: float, high: float) -> None:
    """InvalidRequest unless `value` is a number from `low` to `high`, and so none that is not
    finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidRequest(f"{name} is a number, not {shown(value)}")
    # A bound that came as float32 may be its last bit lower.
    if not low - abs(low) * _FLOAT32_BIT <= float(value) <= high:
        raise InvalidRequest(f"{name} is {exact(low)} to {exact(high)}, not {_digits(value)}")


def _digits(value: numbers.Real) -> str:
    """A number; one that came as float32 in the digits that its sender wrote."""
    with np.errstate(over="ignore"):
        single = np.float32(float(value))
    return str(single) if isinstance(value, float) and float(single) == value else str(value)


def check_flag(name: str, value: object) -> None:
    """InvalidRequest unless `value` is true or false."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is true or false, not {shown(value)}")


def check_texts(name: str, values: object) -> None:
    """InvalidRequest unless `values` is a list or tuple of texts; one text is no list of them."""
    if not isinstance(values, list | tuple):
        raise InvalidRequest(f"{name} is a list of texts, not {shown(values)}")
    for value in values:
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} is a list of texts, one of them is {shown(value)}")


def check_whole_numbers(name: str, values: object, low: int = 0) -> None:
    """InvalidRequest unless `values` is a list or tuple of whole numbers of `low` or more."""
    if not isinstance(values, list | tuple):
        raise InvalidRequest(f"{name} is a list of whole numbers, not {shown(values)}")
    for value in values:
        check_whole(name, value, low)


def check_token_bias(name: str, value: object, most: float, max_count: int) -> dict[int, float]:
    """Numbers by token id, which JSON has as text; InvalidRequest for anything else."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} is numbers by token id, not {shown(value)}")
    if len(value) > max_count:
        raise InvalidRequest(f"{name} has {len(value)} tokens, at most {max_count} are taken")
    bias = {}
    for key, number in value.items():
        is_digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20
        token_id = int(key) if is_digits else key
        check_whole(f"a token id of {name}", token_id, 0)
        check_number(f"{name} of token {token_id}", number, -most, most)
        bias[int(token_id)] = float(number)
    if len(bias) < len(value):
        raise InvalidRequest(f"{name} names a token twice")
    return bias


def check_kind(name: str, value: object, kind: type) -> None:
    """InvalidRequest unless `value` is of the class `kind`."""
    if not isinstance(value, kind):
        raise InvalidRequest(f"{name} is of {kind.__name__}, not {shown(value)}")


def shown(value: object) -> str:
    """A value as a sentence has it: its kind in plain words, and what a text or a number says."""
    words = f" {value!r:.82}" if isinstance(value, str | int | float) else ""
    return kind_of(value) + ("" if isinstance(value, bool) else words)

"""Frozen dataclasses again from the JSON that `asdict` made of them, each value of its own type."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


def typed(kind: Any, value: Any, at: str) -> Any:
    """`value` as a `kind`; TypeError that says what stands `at` its place, and what must.

    kind: a dataclass, str, int, float, bool, tuple[X, ...], Mapping[str, X] or X | None. An object
    may lack fields that have defaults; one that it has and `kind` has not is refused.
    """
    if get_origin(kind) is UnionType:
        (other,) = (each for each in get_args(kind) if each is not NoneType)
        return None if value is None else typed(other, value, at)
    if is_dataclass(kind):
        return _record(kind, _checked(dict, value, at, "an object"), at)
    if get_origin(kind) is tuple:
        items = _checked(list, value, at, "a list")
        return tuple(typed(get_args(kind)[0], each, f"{at}[{n}]") for n, each in enumerate(items))
    if get_origin(kind) is Mapping:
        items = _checked(dict, value, at, "an object")
        return {
            name: typed(get_args(kind)[1], each, f"{at}.{name}") for name, each in items.items()
        }
    if kind is float:
        number = value if isinstance(value, bool) else _small(value)
        if not (isinstance(number, float) and math.isfinite(number)):
            raise TypeError(f"{at} is {_shown(value)}, not a number")
        return number
    return _checked(kind, value, at, _CALLED[kind])


_CALLED = {str: "a text", int: "a whole number", bool: "true or false"}


def _record(kind: Any, value: dict[str, Any], at: str) -> Any:
    hints, items = get_type_hints(kind), {item.name: item for item in fields(kind)}
    odd = sorted(value.keys() - items.keys())
    lacking = [n for n, f in items.items() if n not in value and f.default is MISSING]
    if odd or lacking:
        what = f"lacks {lacking[0]}" if lacking else f"has {_shown(odd[0])}, which is no field"
        raise TypeError(f"{at or 'it'} {what}")
    path = f"{at}." if at else ""
    return kind(**{name: typed(hints[name], value[name], path + name) for name in value})


def _checked(kind: type, value: Any, at: str, called: str) -> Any:
    # bool is an int to Python.
    if type(value) is not kind:
        raise TypeError(f"{at or 'it'} is {_shown(value)}, not {called}")
    return value


def _small(value: Any) -> Any:
    """A whole number of JSON's as a float, unless it is larger than any."""
    return float(value) if isinstance(value, int) and abs(value) < 2**53 else value


def _shown(value: Any) -> str:
    return repr(value)[:80]

"""Reading a request's fields by a table: each reader gives a value of the right type or says why
not.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from legokv.documents.document import MAX_TTL_SECONDS
from legokv.errors import InvalidRequest, exact, kind_of

Request = Mapping[str, Any]
# `reader(request, name)` gives the value of the field `name`.
Reader = Callable[[Request, str], Any]

NO_QUESTION = "'text_input' is missing, or 'messages' in its place"

MAX_DIGITS = 400
MAX_INT32 = 2**31 - 1
MAX_UINT64 = 2**64 - 1


def parse_request(body: bytes, max_bytes: int | None = None) -> Request:
    """The JSON object in `body`; InvalidRequest if it is not UTF-8, not JSON or not an object, or
    longer than `max_bytes`.

    Numbers that are none (NaN) and a name given twice are no JSON here: who reads the request
    before us may take the other of the two.
    """
    if max_bytes is not None and len(body) > max_bytes:
        raise InvalidRequest(f"the request has {len(body)} bytes, at most {max_bytes} are taken")
    try:
        request = parse_json(body, "the request", "the request")
    except RecursionError:
        raise InvalidRequest(
            "the request is nested too deep: 1 level is taken, an object of plain values"
        ) from None
    return require_object(request)


def parse_json(
    body: bytes, what: str, owner: str, parse_float: Callable[[str], float] = float
) -> Any:
    """The value in `body`, called `what` in an error, and `owner` for a name given twice in it.

    InvalidRequest if it is not UTF-8 or not JSON, has NaN or infinity, a name twice in one object
    or a whole number of more than MAX_DIGITS; RecursionError if it is nested deeper than Python is.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidRequest(f"{owner} has {twice[:80]!r} twice: one of them is meant")
        return made

    def whole(digits: str) -> int:
        # Reading takes the square of their number.
        if len(digits) > MAX_DIGITS:
            raise InvalidRequest(
                f"{what} has a number of {len(digits)} digits, at most {MAX_DIGITS} are taken"
            )
        return int(digits)

    def no_number(constant: str) -> float:
        raise InvalidRequest(f"{what} is not JSON: {constant} is no number there")

    if not body.strip():
        raise InvalidRequest(f"{what} is empty: JSON is taken")
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=once,
            parse_constant=no_number,
            parse_int=whole,
            parse_float=parse_float,
        )
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{what} is not UTF-8: byte 0x{body[error.start]:02x} at offset {error.start} "
            f"of {len(body)}"
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from None


def require_object(request: object) -> Request:
    """The request itself if it is a JSON object."""
    if not isinstance(request, Mapping):
        raise InvalidRequest(f"a request is a JSON object, not {kind_of(request)}")
    return request


def read(request: Request, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Every field that has a reader; InvalidRequest for any other, and as the readers have it."""
    refuse_unknown(request, readers)
    return {name: reader(request, name) for name, reader in readers.items()}


def if_given(reader: Reader) -> Reader:
    """Reads a field that may be absent, and is None then."""

    def read_if_given(request: Request, name: str) -> Any:
        return reader(request, name) if name in request else None

    return read_if_given


def decoded(values: Mapping[str, object]) -> Request:
    """The fields with bytes read as UTF-8, also inside a list; InvalidRequest if they are not."""
    return {name: _decoded(name, value) for name, value in values.items()}


def _decoded(name: str, value: object) -> object:
    if isinstance(value, list):
        return [_decoded(name, item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{name!r} is not UTF-8: byte 0x{value[error.start]:02x} at offset {error.start} "
            f"of {len(value)}"
        ) from None


def refuse_unknown(request: Iterable[str], names: Collection[str]) -> None:
    """InvalidRequest that names the first field not among the known ones, and those."""
    for name in request:
        if name not in names:
            raise InvalidRequest(
                f"unknown field {str(name)[:80]!r}; known are {', '.join(sorted(names))}"
            )


def text(request: Request, name: str, *, max_len: int | None = None) -> str:
    """A required text of at most `max_len` characters, all of them valid in UTF-8."""
    if name not in request:
        raise InvalidRequest(f"{name!r} is missing")
    value = request[name]
    if not isinstance(value, str):
        raise InvalidRequest(f"{name!r} is a text, not {kind_of(value)}")
    if max_len is not None and len(value) > max_len:
        raise InvalidRequest(f"{name!r} has {len(value)} characters, at most {max_len} are taken")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name!r} is not UTF-8: half a surrogate pair at character {error.start}"
        ) from None
    return value


def optional_text(request: Request, name: str, *, max_len: int | None = None) -> str | None:
    """A text, or None where it is absent or null."""
    return None if request.get(name) is None else text(request, name, max_len=max_len)


def json_record(request: Request, name: str) -> dict[str, Any]:
    """The JSON object that a text is, empty where it is absent."""
    if name not in request:
        return {}
    try:
        return dict(parse_request(text(request, name).encode()))
    except InvalidRequest as error:
        raise InvalidRequest(f"{name!r}: {error}".replace("the request", "it")) from None


def items(request: Request, name: str) -> list[Any]:
    """A list of anything, empty where it is absent."""
    value = request.get(name, [])
    if not isinstance(value, list):
        raise InvalidRequest(f"{name!r} is a list, not {kind_of(value)}")
    return value


def texts(request: Request, name: str) -> tuple[str, ...]:
    """The texts of a list, none where it is absent."""
    values = items(request, name)
    for value in values:
        if not isinstance(value, str):
            raise InvalidRequest(f"{name!r} is a list of texts, one of them is {kind_of(value)}")
    return tuple(values)


def whole_numbers(request: Request, name: str, *, low: int, high: int) -> tuple[int, ...]:
    """The whole numbers of a list, each from `low` to `high`; none where it is absent."""
    values = request.get(name, [])
    if not isinstance(values, list | tuple):
        raise InvalidRequest(f"{name!r} is a list, not {kind_of(values)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(
                f"{name!r} is a list of whole numbers, one of them is {kind_of(value)}"
            )
    return tuple(whole_number({name: value}, name, low=low, high=high) for value in values)


def optional_choice(request: Request, name: str, choices: Collection[str]) -> str | None:
    """One of the choices, or None where it is absent or null."""
    value = optional_text(request, name)
    if value is not None and value not in choices:
        raise InvalidRequest(f"{name!r} is one of {', '.join(choices)}, not {value[:80]!r}")
    return value


def flag(request: Request, name: str, *, default: bool = False) -> bool:
    """true or false."""
    value = request.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name!r} is true or false, not {kind_of(value)}")
    return value


def whole_number(request: Request, name: str, *, default: int = 0, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name!r} is a whole number, not {kind_of(value)}")
    if not low <= value <= high:
        raise InvalidRequest(f"{name!r} is {value}, outside {low} to {high}")
    return value


def number(request: Request, name: str, *, default: float = 0.0) -> float:
    """A number, whole or not."""
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name!r} is a number, not {kind_of(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequest(
            f"{name!r} has {len(str(value))} digits: no number is so large"
        ) from None


def optional_seconds(request: Request, name: str) -> float | None:
    """A number of seconds above 0, or None where it is absent or null."""
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name!r} is a number of seconds, not {kind_of(value)}")
    if not 0 < value < MAX_TTL_SECONDS:
        raise InvalidRequest(
            f"{name!r} is {exact(value)}: it is more than 0 and less than "
            f"{exact(MAX_TTL_SECONDS)} seconds, or null for no end"
        )
    return float(value)

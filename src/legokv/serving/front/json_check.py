"""Whether JSON has fields of the model's types: Triton flattens lists and wraps numbers without a
word, in `generate` and in the data of `infer`.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from legokv.errors import InvalidRequest, exact, kind_of
from legokv.serving.fields import NO_QUESTION, parse_request, refuse_unknown
from legokv.serving.front.tensor_check import Input, Model, check_id

_PARAMETERS = "parameters"
_ID = Input("BYTES", (1,), optional=True)
_PLAIN = frozenset({"id", "text_input", "namespace", "system_text", "mode"})
"""Single texts that are no JSON; the others may be the JSON itself."""
_WHOLE = {"INT32": (-(2**31), 2**31 - 1), "INT64": (-(2**63), 2**63 - 1), "UINT64": (0, 2**64 - 1)}
_MAX_FLOAT32 = (2 - 2**-23) * 2.0**127


def check_generate(body: bytes, model: Model, *, streamed: bool) -> bytes:
    """The body that Triton gets: as it came, but for fields of JSON, which become text.

    InvalidRequest for what Triton would refuse, flatten, wrap or round, and for a stream where the
    call gives one reply. `body` is within the bounds of `check_json`.
    """
    request = parse_request(body)
    more = request.get(_PARAMETERS, {})
    if not isinstance(more, dict):
        raise InvalidRequest(f"{_PARAMETERS!r} is an object with fields, not {kind_of(more)}")
    inputs = {**model.inputs, "id": _ID}
    refuse_unknown(more, inputs)
    refuse_unknown(request, (*inputs, _PARAMETERS))
    for name in more:
        if name in request:
            raise InvalidRequest(f"{name!r} is there twice, and once in {_PARAMETERS!r}: send one")
    if not any(name in model.inputs for name in (*more, *request)):
        raise InvalidRequest(NO_QUESTION)
    request_id = {**more, **request}.get("id", "")
    check_elements("id", [request_id], "BYTES")
    check_id(request_id)
    parts = [{name: value for name, value in request.items() if name != _PARAMETERS}, dict(more)]
    mended = [_mended(fields, inputs) for fields in parts]
    if not streamed and any(part.get("stream") in (True, [True]) for part in parts):
        raise InvalidRequest(
            "'stream' is true, and generate gives one reply: leave it out, or POST "
            "/v2/models/generate/generate_stream"
        )
    return body if mended == parts else json_text({**mended[0], _PARAMETERS: mended[1]}).encode()


def _mended(fields: Mapping[str, Any], inputs: Mapping[str, Input]) -> dict[str, Any]:
    """The fields, checked, with objects and lists of those that are JSON as text."""
    mended = dict(fields)
    for name, value in fields.items():
        if _is_json(value) and _takes_json(name, inputs[name]):
            mended[name] = json_text(value)
        else:
            check_value(name, value, inputs[name])
    return mended


def _takes_json(name: str, want: Input) -> bool:
    return want.datatype == "BYTES" and want.dims[-1] == 1 and name not in _PLAIN


def _is_json(value: Any) -> bool:
    """Whether a field's value is the JSON itself: a list with one text is that text."""
    one_text = isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
    return isinstance(value, dict | list) and not one_text


def check_value(name: str, value: Any, want: Input) -> None:
    """InvalidRequest unless the value, or each of a list, is one that the input's type holds.

    A list with one value stands for it, and a value for a list of it.
    """
    values = value if isinstance(value, list) else [value]
    if want.dims[-1] != -1 and len(values) != 1:
        raise InvalidRequest(f"{name!r} has {len(values)} values, it takes one")
    check_elements(name, values, want.datatype)


def check_elements(name: str, values: Sequence[Any], datatype: str) -> None:
    """InvalidRequest for the first value that is not of the type, or outside its range."""
    check = _CHECKS[datatype]
    for value in values:
        check(name, value, datatype)


def json_text(value: Any) -> str:
    """The value as JSON that any parser reads alike; InvalidRequest for a number past float64."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise InvalidRequest("the JSON has a number past the range of a float64") from None


def _check_text(name: str, value: Any, _: str) -> None:
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name!r} is not UTF-8: half a surrogate pair at character {error.start}"
        ) from None


def _check_flag(name: str, value: Any, _: str) -> None:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)


def _check_whole(name: str, value: Any, datatype: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "a whole number", value)
    low, high = _WHOLE[datatype]
    if not low <= value <= high:
        raise InvalidRequest(f"{name!r} is {_shown(value)}, outside {low} to {high}")


def _check_number(name: str, value: Any, datatype: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "a number", value)
    most = _MAX_FLOAT32 if datatype == "FP32" else math.nextafter(math.inf, 0)
    if not abs(value) <= most:
        raise InvalidRequest(
            f"{name!r} is {_shown(value)}, outside {exact(-most)} to {exact(most)}"
        )
    if value and datatype == "FP32" and not struct.unpack("f", struct.pack("f", value))[0]:
        raise InvalidRequest(f"{name!r} is {exact(value)}, which a float32 can't tell from 0")


def _wrong(name: str, takes: str, value: Any) -> InvalidRequest:
    return InvalidRequest(f"{name!r} takes {takes}, not {kind_of(value)}")


def _shown(value: float) -> str:
    return exact(value) if isinstance(value, float) else str(value)[:80]


_CHECKS: dict[str, Callable[[str, Any, str], None]] = {
    "BYTES": _check_text,
    "BOOL": _check_flag,
    **dict.fromkeys(_WHOLE, _check_whole),
    "FP32": _check_number,
    "FP64": _check_number,
}

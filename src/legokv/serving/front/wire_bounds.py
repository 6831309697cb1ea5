"""How many fields a gRPC request has, counted on the wire: parsing makes an object of each.

The wire format is protobuf's: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Mapping
from typing import Any

from legokv.errors import InvalidRequest

MAX_FIELDS = 70_000
"""Most fields of a request and of what is in it: a tensor's elements, and some."""
MAX_SHAPE_BYTES = 256
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
# By the field's number in ModelInferRequest, those whose own fields are counted as well: inputs
# (their parameters and contents), outputs, parameters.
_Tree = Mapping[int, Any]
_REQUEST: _Tree = {4: {}, 5: {4: {}, 5: {}}, 6: {4: {}}}
_INPUTS, _SHAPE = 5, 3
_TEXTS = {1: "model_name", 2: "model_version", 3: "id"}


def check_wire(body: bytes) -> None:
    """InvalidRequest if a ModelInferRequest has too many fields, or is none by its outer form."""
    try:
        _count(body, 0, len(body), _REQUEST, 0)
    except IndexError:
        raise InvalidRequest("not a ModelInferRequest: it ends within a field") from None


def _count(body: bytes, place: int, end: int, tree: _Tree, count: int) -> int:
    while place < end:
        count += 1
        if count > MAX_FIELDS:
            raise InvalidRequest(f"the request has more than {MAX_FIELDS} fields in its message")
        tag, place = _varint(body, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, place = _varint(body, place)
        elif kind in (_EIGHT, _FOUR):
            place += 8 if kind == _EIGHT else 4
        elif kind == _LENGTH:
            length, place = _varint(body, place)
            if place + length > end:
                raise InvalidRequest("not a ModelInferRequest: a field is longer than the rest")
            if tree is _REQUEST[_INPUTS] and number == _SHAPE and length > MAX_SHAPE_BYTES:
                raise InvalidRequest(f"a shape of {length} bytes, {MAX_SHAPE_BYTES} fit")
            if tree is _REQUEST and number in _TEXTS:
                _check_text(_TEXTS[number], body[place : place + length])
            if number in tree:
                count = _count(body, place, place + length, tree[number], count)
            place += length
        else:
            raise InvalidRequest(f"not a ModelInferRequest: a field of kind {kind}")
    return count


def _check_text(name: str, value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the request's {name} is not UTF-8: byte 0x{value[error.start]:02x} at offset "
            f"{error.start} of {len(value)}"
        ) from None


def _varint(body: bytes, place: int) -> tuple[int, int]:
    """A number and where it ends; IndexError past the end."""
    number = shift = 0
    while True:
        byte = body[place]
        number |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return number, place
        shift += 7
        if shift > 63:
            raise InvalidRequest("not a ModelInferRequest: a number of more than 64 bits")

"""Whether the JSON of an `infer` over HTTP names tensors that the model's config has."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from legokv.errors import InvalidRequest
from legokv.serving.front.tensor_check import Model, check_names, check_shape

_PARAMETERS = frozenset({"binary_data", "binary_data_size"})
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True)
class _Tensor:
    """An input or output as the checks of gRPC's tensors read them."""

    name: str
    datatype: str = ""
    shape: tuple[int, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


def check_infer(text: bytes, model: Model, num_raw_bytes: int) -> None:
    """InvalidRequest with the reason if Triton would not take the tensors that the text names.

    `text` is within the bounds of `check_json`; behind it come `num_raw_bytes` of tensors.
    """
    if not text:  # all of the body is the one input's
        return
    try:
        request = json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise InvalidRequest(f"not JSON: {error}") from None
    if not isinstance(request, dict):
        raise InvalidRequest("the JSON is no object with inputs")
    inputs = [_tensor(item) for item in _list(request, "inputs")]
    outputs = [_tensor(item) for item in _list(request, "outputs")]
    check_names(inputs, outputs, model)
    for tensor in inputs:
        check_shape(tensor, model.inputs[tensor.name])
    sizes = [tensor.parameters.get("binary_data_size", 0) for tensor in inputs]
    if not all(_is_count(size) for size in sizes) or sum(sizes) != num_raw_bytes:
        raise InvalidRequest(
            f"the inputs' binary_data_size are {sizes[:4]}, {num_raw_bytes} bytes come with them"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two members of one name another parser might take the other."""
    record = dict(pairs)
    if len(record) != len(pairs):
        raise InvalidRequest("an object of the JSON has a member twice")
    return record


def _list(record: dict[str, Any], name: str) -> list[Any]:
    items = record.get(name, [])
    if not isinstance(items, list):
        raise InvalidRequest(f"{name} is no list")
    return items


def _tensor(item: Any) -> _Tensor:
    if not isinstance(item, dict):
        raise InvalidRequest("an input or output is no object")
    tensor = _Tensor(
        item.get("name", ""),
        item.get("datatype", ""),
        tuple(_list(item, "shape")),
        item.get("parameters", {}),
    )
    texts = isinstance(tensor.name, str) and isinstance(tensor.datatype, str)
    if not texts or not isinstance(tensor.parameters, dict):
        raise InvalidRequest("a tensor's name and datatype are texts, its parameters an object")
    if not all(_is_count(size) for size in tensor.shape):
        raise InvalidRequest(f"{tensor.name[:100]!r} has a shape that is no list of whole numbers")
    for name in tensor.parameters.keys() - _PARAMETERS:
        raise InvalidRequest(f"{tensor.name[:100]!r} has parameter {name[:100]!r}, closed here")
    return tensor


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INT64

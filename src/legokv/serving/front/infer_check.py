"""Whether the JSON of an `infer` over HTTP names tensors that the model's config has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from legokv.errors import InvalidRequest, kind_of
from legokv.serving.fields import parse_request, refuse_unknown
from legokv.serving.front.json_check import check_elements, json_text
from legokv.serving.front.tensor_check import Model, check_id, check_names, check_shape

_OF_REQUESTS = frozenset({"id", "inputs", "outputs", "parameters"})
_OF_TENSORS = frozenset({"name", "datatype", "shape", "parameters", "data"})
_OF_ALL_OUTPUTS = frozenset({"binary_data_output"})
_PARAMETERS = frozenset({"binary_data", "binary_data_size"})
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True)
class _Tensor:
    """An input or output as the checks of gRPC's tensors read them."""

    name: str
    datatype: str = ""
    shape: tuple[int, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


def check_infer(text: bytes, model: Model, num_raw_bytes: int) -> bytes:
    """The JSON that Triton gets: as it came, but for objects among its data, which become text.

    InvalidRequest with the reason if Triton would not take the tensors that the text names, or
    take others. `text` is within the bounds of `check_json`; behind it come `num_raw_bytes` of
    tensors.
    """
    if not text:  # all of the body is the one input's
        return text
    request = parse_request(text)
    refuse_unknown(request, _OF_REQUESTS)
    if not isinstance(request.get("id", ""), str):
        raise InvalidRequest(f"'id' takes a text, not {kind_of(request['id'])}")
    check_id(request.get("id", ""))
    refuse_unknown(_parameters(request), _OF_ALL_OUTPUTS)
    inputs = [_tensor(item) for item in _list(request, "inputs")]
    outputs = [_tensor(item) for item in _list(request, "outputs")]
    check_names(inputs, outputs, model)
    counts = [check_shape(tensor, model.inputs[tensor.name]) for tensor in inputs]
    sizes = [tensor.parameters.get("binary_data_size", 0) for tensor in inputs]
    if not all(_is_count(size) for size in sizes) or sum(sizes) != num_raw_bytes:
        raise InvalidRequest(
            f"the inputs' binary_data_size are {sizes[:4]}, {num_raw_bytes} bytes come with them"
        )
    mended = [_mended(item, count) for item, count in zip(request["inputs"], counts, strict=True)]
    if mended == request["inputs"]:
        return text
    return json_text({**request, "inputs": mended}).encode()


def _mended(item: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    """An input with its data checked: `count` values in one list, objects of them as text."""
    name, is_raw = item["name"], "binary_data_size" in _parameters(item)
    if is_raw == ("data" in item):
        raise InvalidRequest(
            f"{name!r} has {'both' if is_raw else 'neither'} of 'data' and the parameter "
            "'binary_data_size': one is taken"
        )
    if is_raw:
        return item
    values = _list(item, "data")
    if len(values) != count:
        raise InvalidRequest(f"{name!r} has {len(values)} values in data, its shape says {count}")
    if item["datatype"] == "BYTES":
        values = [json_text(value) if isinstance(value, dict) else value for value in values]
    check_elements(name, values, item["datatype"])
    return {**item, "data": values}


def _list(record: Mapping[str, Any], name: str) -> list[Any]:
    items = record.get(name, [])
    if not isinstance(items, list):
        raise InvalidRequest(f"{name!r} is a list, not {kind_of(items)}")
    return items


def _parameters(record: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = record.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"'parameters' is an object, not {kind_of(parameters)}")
    return parameters


def _tensor(item: Any) -> _Tensor:
    if not isinstance(item, dict):
        raise InvalidRequest(f"an input or output is an object, not {kind_of(item)}")
    refuse_unknown(item, _OF_TENSORS)
    tensor = _Tensor(
        item.get("name", ""),
        item.get("datatype", ""),
        tuple(_list(item, "shape")),
        _parameters(item),
    )
    if not isinstance(tensor.name, str) or not isinstance(tensor.datatype, str):
        raise InvalidRequest("a tensor's name and datatype are texts")
    if not all(_is_count(size) for size in tensor.shape):
        raise InvalidRequest(f"{tensor.name[:100]!r} has a shape that is no list of whole numbers")
    for name in tensor.parameters.keys() - _PARAMETERS:
        raise InvalidRequest(f"{tensor.name[:100]!r} has parameter {name[:100]!r}, closed here")
    return tensor


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INT64

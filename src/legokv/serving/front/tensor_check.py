"""Whether a gRPC request's tensors are what the model's config says: Triton sees no others.

Triton 24.10 refuses a wrong shape itself, but keeps the client's descriptor for ever.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

from legokv.errors import InvalidRequest, NotFound
from legokv.serving.fields import NO_QUESTION
from legokv.serving.front.routes import MODELS, VERSION
from legokv.serving.front.wire_bounds import check_wire
from legokv.serving.log import MAX_ID_LEN

MAX_ELEMENTS = 65_536
"""Most elements of one tensor."""
MAX_PARAMETERS = 64
_SHARED_MEMORY = "shared_memory"
_TRITONS = "triton_"
"""Triton keeps names of parameters that begin so to itself, and takes those of the table below."""
_OTHERS = ("int64_param", "bool_param", "string_param", "double_param")
_PARAMETERS = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    "triton_enable_empty_final_response": ("bool_param",),
}
_BYTES = "BYTES"
_ITEM_BYTES = {"BOOL": 1, "INT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "FP32": "fp32_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP64": "fp64_contents",
    _BYTES: "bytes_contents",
}


@dataclass(frozen=True)
class Input:
    """One input as the config has it; a batch dimension of 1 is part of `dims`, -1 is any."""

    datatype: str
    dims: tuple[int, ...]
    optional: bool


@dataclass(frozen=True)
class Model:
    """What a model takes and gives."""

    inputs: Mapping[str, Input]
    outputs: frozenset[str]


def models_in(repository: Path) -> dict[str, Model]:
    """The models that clients may ask, by the configs that Triton reads."""
    return {name: _model(repository / name / "config.pbtxt") for name in MODELS}


def _model(file: Path) -> Model:
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    batch = (1,) if config.max_batch_size else ()
    inputs = {
        item.name: Input(_datatype(item.data_type), (*batch, *item.dims), item.optional)
        for item in config.input
    }
    return Model(inputs, frozenset(item.name for item in config.output))


def _datatype(number: int) -> str:
    name: str = model_config_pb2.DataType.Name(number).removeprefix("TYPE_")
    return _BYTES if name == "STRING" else name


def check_request(request: Any, models: Mapping[str, Model]) -> None:
    """InvalidRequest or NotFound with the reason if Triton would not take these tensors."""
    check_model(request.model_name, request.model_version, models)
    check_id(request.id)
    model = models[request.model_name]
    check_names(request.inputs, request.outputs, model)
    for output in request.outputs:
        _check_parameters(output)
        if output.parameters:
            raise InvalidRequest(f"output {output.name!r} takes no parameters")
    _check_own_parameters(request.parameters)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(f"{len(raw)} raw contents come with {len(request.inputs)} inputs")
    for index, tensor in enumerate(request.inputs):
        _check_parameters(tensor)
        count = check_shape(tensor, model.inputs[tensor.name])
        if raw:
            _check_raw(tensor, raw[index], count)
        else:
            _check_contents(tensor, count)


def check_id(request_id: str) -> None:
    """InvalidRequest for an id that Triton would cut: it would be another request's."""
    place = request_id.find("\0")
    if place >= 0:
        raise InvalidRequest(f"the request's id has a zero byte at character {place}")


def check_model(name: str, version: str, models: Iterable[str]) -> None:
    """NotFound unless clients may name the model, and its version is this one or left out."""
    if name not in models:
        raise NotFound(f"there is no model {name[:200]!r} here: {' and '.join(models)} are")
    if version not in ("", VERSION):
        raise NotFound(f"there is no version {version[:200]!r} of {name}: {VERSION} is there")


def _check_own_parameters(parameters: Mapping[str, Any]) -> None:
    """InvalidRequest for too many of a request, or for one of a type that Triton does not take."""
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidRequest(f"{len(parameters)} parameters, at most {MAX_PARAMETERS} fit")
    for name, value in parameters.items():
        kinds = _PARAMETERS.get(name, () if name.startswith(_TRITONS) else _OTHERS)
        kind = value.WhichOneof("parameter_choice") or "nothing"
        if not kinds:
            raise InvalidRequest(f"unknown parameter {name[:100]!r} of the request")
        if kind not in kinds:
            raise InvalidRequest(
                f"the request's parameter {name[:100]!r} is {kind}, {' or '.join(kinds)} is taken"
            )
        if name == "priority" and value.int64_param < 0:
            raise InvalidRequest(f"priority is {value.int64_param}, 0 or more is taken")
        if name == "sequence_id" and len(value.string_param) > MAX_ID_LEN:
            raise InvalidRequest(
                f"sequence_id has {len(value.string_param)} characters, at most {MAX_ID_LEN} fit"
            )


def check_names(inputs: Sequence[Any], outputs: Sequence[Any], model: Model) -> None:
    """InvalidRequest unless these are inputs and outputs of the model, none missing or twice.

    Without any input Triton 24.10 ends, where a stream's errors are its status.
    """
    names = [tensor.name for tensor in inputs]
    _check_known(names, model.inputs, "input")
    missing = [n for n, item in model.inputs.items() if not item.optional and n not in names]
    if missing:
        raise InvalidRequest(f"input {missing[0]!r} is missing")
    if not names:
        raise InvalidRequest(NO_QUESTION)
    _check_known([output.name for output in outputs], model.outputs, "output")


def _check_known(names: list[str], taken_names: Iterable[str], noun: str) -> None:
    choices = sorted(taken_names)
    if len(names) > len(choices):
        raise InvalidRequest(f"{len(names)} {noun}s are given, there are {len(choices)}")
    for name in names:
        if name not in choices:
            raise InvalidRequest(f"unknown {noun} {name[:100]!r}; known are {', '.join(choices)}")
    if len(set(names)) != len(names):
        raise InvalidRequest(f"an {noun} is given twice among {', '.join(names)}")


def _check_parameters(tensor: Any) -> None:
    for name in tensor.parameters:
        if name.startswith(_SHARED_MEMORY):
            raise InvalidRequest(f"{tensor.name!r} lies in shared memory, which is closed here")


def check_shape(tensor: Any, want: Input) -> int:
    """How many elements the tensor has."""
    shape = tuple(tensor.shape)
    if tensor.datatype != want.datatype:
        raise InvalidRequest(
            f"{tensor.name} is of type {tensor.datatype[:20]!r}, {want.datatype} is taken"
        )
    fits = len(shape) == len(want.dims) and all(
        size >= 0 and dim in (-1, size) for size, dim in zip(shape, want.dims, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"{tensor.name} has shape {list(shape[:8])}, {list(want.dims)} is taken (-1: any)"
        )
    count: int = math.prod(shape)
    if count > MAX_ELEMENTS:
        raise InvalidRequest(f"{tensor.name} has {count} elements, at most {MAX_ELEMENTS} fit")
    return count


def _check_raw(tensor: Any, raw: bytes, count: int) -> None:
    if tensor.datatype == _BYTES:
        num_strings = _strings_in(raw, count)
        if num_strings != count:
            raise InvalidRequest(f"{tensor.name} has {num_strings} strings, its shape says {count}")
    elif len(raw) != count * _ITEM_BYTES[tensor.datatype]:
        raise InvalidRequest(
            f"{tensor.name} has {len(raw)} bytes, its shape says "
            f"{count * _ITEM_BYTES[tensor.datatype]}"
        )
    if tensor.HasField("contents"):
        raise InvalidRequest(f"{tensor.name} has contents twice")


def _strings_in(raw: bytes, most: int) -> int:
    """How many strings, each behind its length, the bytes are made of; -1 if it does not add up.

    Not counted further than one above `most`.
    """
    place = count = 0
    while place + 4 <= len(raw) and count <= most:
        place += 4 + int.from_bytes(raw[place : place + 4], "little")
        count += 1
    return count if place == len(raw) or count > most else -1


def _check_contents(tensor: Any, count: int) -> None:
    if count == 0:
        raise InvalidRequest(
            f"{tensor.name} has no elements, and no raw contents: send them, or leave it out"
        )
    kind = _CONTENTS[tensor.datatype]
    kinds = [field.name for field, _ in tensor.contents.ListFields()]
    num_values = len(getattr(tensor.contents, kind))
    if num_values != count or any(name != kind for name in kinds):
        raise InvalidRequest(
            f"{tensor.name} has {num_values} values in {kind}, its shape says {count}, and "
            f"{', '.join(kinds) or 'nothing'} is given"
        )


def parse_request(body: bytes) -> Any:
    """The request that Triton would read in these bytes; InvalidRequest if it is none."""
    check_wire(body)
    request = service_pb2.ModelInferRequest()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"not a ModelInferRequest: {error}") from None
    return request

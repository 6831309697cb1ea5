"""Triton's models as calls with plain values: fields become tensors, outputs become values."""

import json
import struct
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, Protocol

from tritonclient.grpc import service_pb2

from legokv.errors import Busy, InvalidRequest, LegokvError
from legokv.serving.gateway.refusals import Names, renamed

_FORMATS = {"BOOL": "?", "INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f", "FP64": "d"}
_BYTES = "BYTES"
_LENGTH = struct.Struct("<I")

IN_LOG = "the model that said so has written it into the log"
"""A note on errors that need no line of the gateway's."""

Values = dict[str, Any]
_NO_NAMES: Names = MappingProxyType({})


def json_text(value: Any) -> str:
    """JSON in as few bytes as it takes; ValueError for numbers that are none."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


Ask = Callable[[Any], AsyncGenerator[Any, None]]
"""Sends a ModelInferRequest; its ModelInferResponses, or one of the errors of `legokv.errors`."""


class InputForm(Protocol):
    """One input as a model's config has it; a size of -1 is any."""

    @property
    def datatype(self) -> str: ...

    @property
    def dims(self) -> tuple[int, ...]: ...


class ModelForm(Protocol):
    """What a model takes."""

    @property
    def inputs(self) -> Mapping[str, InputForm]: ...


class Models:
    """The models `generate` and `documents`. Each call is one request of its own."""

    def __init__(self, forms: Mapping[str, ModelForm], ask: Ask) -> None:
        self._forms = forms
        self._ask = ask

    def takes(self, name: str) -> bool:
        """Whether `generate` has an input of this name."""
        return name in self._forms["generate"].inputs

    def generate(
        self, fields: Mapping[str, Any], request_id: str, names: Names = _NO_NAMES
    ) -> AsyncGenerator[Values, None]:
        """Outputs of each reply, a list where there are several values or none.

        Leaving the iteration ends the request. Errors call the fields by these `names`.
        """
        return self._replies(self._request("generate", fields, request_id), names)

    async def _replies(
        self, request: Any, names: Names = _NO_NAMES
    ) -> AsyncGenerator[Values, None]:
        try:
            async with aclosing(self._ask(request)) as replies:
                async for reply in replies:
                    if reply.outputs:
                        yield _values(reply)
        except LegokvError as error:
            in_client_s_words = renamed(error, names)
            in_client_s_words.add_note(IN_LOG)
            raise in_client_s_words from None

    async def documents(self, operation: str, **fields: Any) -> Values:
        """The reply of the model `documents` to one operation."""
        body = json_text({"operation": operation, **fields}).encode()
        request = self._request("documents", {"request": body}, "")
        answer: Values | None = None
        async with aclosing(self._replies(request)) as replies:
            async for values in replies:
                answer = json.loads(values["reply"])
        if answer is None:
            raise Busy("the server gave no answer about a document: ask again in a few seconds")
        return answer

    def _request(self, model: str, fields: Mapping[str, Any], request_id: str) -> Any:
        request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
        for name, value in fields.items():
            form = self._forms[model].inputs.get(name)
            if form is None:
                raise InvalidRequest(f"{name!r} is not offered by this server")
            values = list(value) if isinstance(value, list | tuple) else [value]
            tensor = request.inputs.add(name=name, datatype=form.datatype)
            tensor.shape.extend(len(values) if size < 0 else size for size in form.dims)
            request.raw_input_contents.append(_packed(form.datatype, values))
        return request


def _packed(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != _BYTES:
        return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _values(reply: Any) -> Values:
    """Outputs by name: one value, or a list of them where there are several."""
    outputs = zip(reply.outputs, reply.raw_output_contents, strict=True)
    return {output.name: _unpacked(output.datatype, raw) for output, raw in outputs}


def _unpacked(datatype: str, raw: bytes) -> Any:
    values = _texts(raw) if datatype == _BYTES else _numbers(datatype, raw)
    return values[0] if len(values) == 1 else values


def _numbers(datatype: str, raw: bytes) -> list[Any]:
    size = struct.calcsize(_FORMATS[datatype])
    return list(struct.unpack(f"<{len(raw) // size}{_FORMATS[datatype]}", raw))


def _texts(raw: bytes) -> list[str]:
    texts, place = [], 0
    while place < len(raw):
        (length,) = _LENGTH.unpack_from(raw, place)
        place += 4 + length
        texts.append(raw[place - length : place].decode())
    return texts

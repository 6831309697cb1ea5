"""Between Triton's tensors and plain values, by the model's own config. Runs in Triton's stub."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from legokv.errors import InvalidRequest, LegokvError
from legokv.serving.answering import Reply, new_fault
from legokv.serving.ending import LEFT_PARAMETER, client_left
from legokv.serving.error_codes import with_code
from legokv.serving.fields import refuse_unknown

log = logging.getLogger(__name__)

_ID = "id"
"""Over HTTP `generate` hands a request's id on as a parameter."""
_TRITONS = "triton_"
"""What Triton's own parameters begin with."""


@dataclass(frozen=True)
class Received:
    """One request as plain values; an `error` in reading them ends this request and no other."""

    fields: Mapping[str, object]
    request_id: str
    error: LegokvError | None = None

    def replies(self, make: Callable[..., Iterator[Reply]], *others: object) -> Iterator[Reply]:
        """What `make` gives to the fields and the `others`; raises the error in reading them."""
        if self.error is not None:
            raise self.error
        yield from make(self.fields, *others)


class Tensors:
    """Translates one model's requests and responses; the config says which values are lists."""

    def __init__(self, model_config: str) -> None:
        config = json.loads(model_config)
        self._batched = bool(config["max_batch_size"])
        self._inputs = tuple(item["name"] for item in config["input"])
        self._lists = {item["name"] for item in config["input"] if int(item["dims"][0]) < 0}
        self._dtypes = {
            item["name"]: pb_utils.triton_string_to_numpy(item["data_type"])
            for item in config["output"]
        }

    def received(self, request: Any) -> Received:
        """The request's inputs by name, text as bytes, and the id its client gave it or "".

        Never raises: Triton would answer with a traceback, and drop the requests beside it.
        """
        request_id = ""
        try:
            parameters = _parameters(request)
            request_id = _client_id(request, parameters)
            self._check_parameters(parameters)
            return Received(self._fields(request), request_id)
        except LegokvError as error:
            return Received({}, request_id, error)
        except Exception:
            # The process's boundary, as in `answering`.
            fault_id, fault = new_fault()
            log.exception("fault %s in reading a request", fault_id)
            return Received({}, request_id, fault)

    def _check_parameters(self, parameters: Mapping[str, object]) -> None:
        """InvalidRequest for a field that came as a parameter: they have other types than fields.

        Over HTTP what is no input of the model comes so.
        """
        for name in parameters:
            if name in (_ID, LEFT_PARAMETER) or name.startswith(_TRITONS):
                continue
            refuse_unknown((name,), self._inputs)
            raise InvalidRequest(f"{name!r} came as a parameter of the request: send it as input")

    def _fields(self, request: Any) -> dict[str, object]:
        values_by_name: dict[str, object] = {}
        for tensor in request.inputs():
            name, values = tensor.name(), tensor.as_numpy().reshape(-1).tolist()
            if name not in self._lists and len(values) != 1:
                raise InvalidRequest(f"{name!r} has {len(values)} values, it takes one")
            values_by_name[name] = values if name in self._lists else values[0]
        return values_by_name

    def response(self, values: Mapping[str, object]) -> Any:
        """A response with an output for each value or list of them; text goes out as UTF-8."""
        return pb_utils.InferenceResponse([self._tensor(*item) for item in values.items()])

    def _tensor(self, name: str, value: object) -> Any:
        values = value if isinstance(value, list) else [value]
        plain = [item.encode() if isinstance(item, str) else item for item in values]
        array = np.array(plain, self._dtypes[name])
        return pb_utils.Tensor(name, array[None] if self._batched else array)


def _parameters(request: Any) -> dict[str, object]:
    try:
        return dict(json.loads(request.parameters() or "{}"))
    except UnicodeDecodeError:
        raise InvalidRequest(
            "the request has a member, no input of the model, that is not UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request's parameters cannot be read: {error}") from None


def _left_name(request: Any) -> object:
    """What the front calls the request; nothing where its parameters cannot be read."""
    try:
        return _parameters(request).get(LEFT_PARAMETER)
    except InvalidRequest:
        return None


def _client_id(request: Any, parameters: Mapping[str, object]) -> str:
    try:
        return str(request.request_id() or parameters.get(_ID, ""))
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the request's id is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start} of {len(error.object)}"
        ) from None


class TensorResponder:
    """Sends one request's replies as tensors, from one thread. Outlives the request object."""

    def __init__(self, tensors: Tensors, request: Any) -> None:
        self._tensors = tensors
        self._sender = request.get_response_sender()
        self._ended = False
        self._left = client_left(_left_name(request), os.environ)

    def is_cancelled(self) -> bool:
        """Whether the client has gone away before the request ended."""
        # Triton 24.10 crashes when it is asked about a request that has ended.
        return not self._ended and (self._left() or bool(self._sender.is_cancelled()))

    def send(self, reply: Reply) -> None:
        self._send(self._tensors.response(reply.values), reply.final)

    def fail(self, error: LegokvError) -> None:
        code = getattr(pb_utils.TritonError, error.code)
        # Half a surrogate pair, in whatever a client sent, is no text that could go out.
        sentence = with_code(error).encode(errors="backslashreplace").decode()
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(sentence, code)), True)

    def _send(self, response: Any, final: bool) -> None:
        self._ended = final
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        self._sender.send(response, flags=flags)

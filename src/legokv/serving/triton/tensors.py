"""Between Triton's tensors and plain values, by the model's own config. Runs in Triton's stub."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from legokv.errors import LegokvError
from legokv.serving.answering import Reply

# Over HTTP `generate` hands a request's id on as a parameter, as if it were one of the model's.
_ID = "id"


class Tensors:
    """Translates one model's requests and responses; the config says which values are lists."""

    def __init__(self, model_config: str) -> None:
        config = json.loads(model_config)
        self._batched = bool(config["max_batch_size"])
        self._lists = {item["name"] for item in config["input"] if int(item["dims"][0]) < 0}
        self._dtypes = {
            item["name"]: pb_utils.triton_string_to_numpy(item["data_type"])
            for item in config["output"]
        }

    def fields(self, request: Any) -> dict[str, object]:
        """Its inputs by name, text as bytes, and its parameters beside them, but for its id."""
        values_by_name = _parameters(request)
        values_by_name.pop(_ID, None)
        for tensor in request.inputs():
            values = tensor.as_numpy().reshape(-1).tolist()
            values_by_name[tensor.name()] = values if tensor.name() in self._lists else values[0]
        return values_by_name

    def request_id(self, request: Any) -> str:
        """The id its client gave the request, "" for none."""
        return str(request.request_id() or _parameters(request).get(_ID, ""))

    def response(self, values: Mapping[str, object]) -> Any:
        """A response with an output for each value or list of them; text goes out as UTF-8."""
        return pb_utils.InferenceResponse([self._tensor(*item) for item in values.items()])

    def _tensor(self, name: str, value: object) -> Any:
        values = value if isinstance(value, list) else [value]
        plain = [item.encode() if isinstance(item, str) else item for item in values]
        array = np.array(plain, self._dtypes[name])
        return pb_utils.Tensor(name, array[None] if self._batched else array)


def _parameters(request: Any) -> dict[str, object]:
    return dict(json.loads(request.parameters() or "{}"))


class TensorResponder:
    """Sends one request's replies as tensors, from one thread. Outlives the request object."""

    def __init__(self, tensors: Tensors, request: Any) -> None:
        self._tensors = tensors
        self._sender = request.get_response_sender()
        self._ended = False

    def is_cancelled(self) -> bool:
        """Whether the client has gone away before the request ended."""
        # Triton 24.10 crashes when it is asked about a request that has ended.
        return not self._ended and bool(self._sender.is_cancelled())

    def send(self, reply: Reply) -> None:
        self._send(self._tensors.response(reply.values), reply.final)

    def fail(self, error: LegokvError) -> None:
        code = getattr(pb_utils.TritonError, error.code)
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code)), True)

    def _send(self, response: Any, final: bool) -> None:
        self._ended = final
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        self._sender.send(response, flags=flags)

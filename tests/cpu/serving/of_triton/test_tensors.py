"""A request's tensors become fields; one that cannot be read ends that request with a sentence."""

import json
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from legokv.errors import InvalidRequest, LegokvError, NotFound
from legokv.serving.answering import Reply

CONFIG = {
    "max_batch_size": 1,
    "input": [
        {"name": "text_input", "data_type": "TYPE_STRING", "dims": ["1"]},
        {"name": "document_ids", "data_type": "TYPE_STRING", "dims": ["-1"]},
        {"name": "top_k", "data_type": "TYPE_INT32", "dims": ["1"]},
    ],
    "output": [{"name": "text_output", "data_type": "TYPE_STRING", "dims": ["1"]}],
}


class Tensor:
    def __init__(self, name: str, values: list[Any], dtype: Any = np.object_) -> None:
        self._name, self._array = name, np.array([values], dtype)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._array


class Request:
    """As Triton's stub shows one; texts that are no UTF-8 raise when they are asked for."""

    def __init__(
        self, *tensors: Tensor, parameters: bytes = b"", request_id: bytes = b"", **sent: object
    ) -> None:
        self._tensors = tensors
        self._parameters = parameters or json.dumps(sent).encode()
        self._id = request_id

    def inputs(self) -> tuple[Tensor, ...]:
        return self._tensors

    def parameters(self) -> str:
        return self._parameters.decode()

    def request_id(self) -> str:
        return self._id.decode()


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend: Any = types.ModuleType("triton_python_backend_utils")
    backend.triton_string_to_numpy = lambda _: np.object_
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "legokv.serving.triton.tensors", raising=False)
    from legokv.serving.triton.tensors import Tensors

    yield Tensors(json.dumps(CONFIG))
    del sys.modules["legokv.serving.triton.tensors"]


def echoed(fields: Mapping[str, object]) -> Iterator[Reply]:
    yield Reply(fields, final=True)


def error_in(received: Any) -> LegokvError:
    with pytest.raises(LegokvError) as caught:
        list(received.replies(echoed))
    return caught.value


def test_inputs_are_fields_and_lists_where_the_config_says_so(tensors: Any) -> None:
    request = Request(
        Tensor("text_input", [b"Who?"]),
        Tensor("document_ids", [b"a", b"b"]),
        Tensor("top_k", [3], np.int32),
        request_id=b"mine",
    )
    received = tensors.received(request)
    (reply,) = received.replies(echoed)
    assert reply.values == {"text_input": b"Who?", "document_ids": [b"a", b"b"], "top_k": 3}
    assert received.request_id == "mine"


def test_an_id_may_come_as_a_parameter_and_triton_s_own_are_no_fields(tensors: Any) -> None:
    received = tensors.received(Request(id=17, triton_enable_empty_final_response=True))
    assert (received.request_id, next(received.replies(echoed)).values) == ("17", {})


@pytest.mark.parametrize("value", [5, 1.5, True, "the", 1e-320])
@pytest.mark.parametrize("name", ["document_ids", "top_k", "text_input"])
def test_a_parameter_is_no_field(tensors: Any, name: str, value: object) -> None:
    received = tensors.received(Request(**{name: value}))
    error = error_in(received)
    assert isinstance(error, InvalidRequest)
    assert str(error) == f"{name!r} came as a parameter of the request: send it as input"


def test_a_parameter_that_is_no_input_is_refused_with_those_there_are(tensors: Any) -> None:
    error = error_in(tensors.received(Request(beam=4)))
    assert str(error) == "unknown field 'beam'; known are document_ids, text_input, top_k"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(request_id=b"a\xff"), "id is not UTF-8: byte 0xff at offset 1 of 2"),
        (Request(parameters=b'{"a":"\xed\xa0\x80"}'), "a member, no input .* that is not UTF-8"),
        (Request(parameters=b"{"), "parameters cannot be read"),
        (Request(parameters=b"[" * 100_000), "parameters cannot be read"),
        (Request(Tensor("text_input", [])), "'text_input' has 0 values, it takes one"),
        (Request(Tensor("top_k", [1, 2], np.int32)), "'top_k' has 2 values, it takes one"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(
    tensors: Any, request_: Request, message: str
) -> None:
    error = error_in(tensors.received(request_))
    assert isinstance(error, InvalidRequest)
    with pytest.raises(InvalidRequest, match=message):
        raise error


def test_a_fault_of_ours_in_reading_is_told_to_whoever_answers_the_request(tensors: Any) -> None:
    class Torn(Tensor):
        def as_numpy(self) -> np.ndarray[Any, Any]:
            raise TypeError("torn")

    received = tensors.received(Request(Torn("text_input", [b"a"]), request_id=b"mine"))
    assert received.request_id == "mine"
    assert "an internal error; the server's log has it as" in str(error_in(received))


def test_an_error_goes_out_with_its_code_where_a_front_takes_that_away(
    tensors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from legokv.serving.triton.tensors import TensorResponder, pb_utils

    said: list[tuple[str, str]] = []
    pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    pb_utils.TritonError = lambda sentence, code: said.append((sentence, code))
    pb_utils.TritonError.NOT_FOUND = "code 5"
    pb_utils.InferenceResponse = lambda error: error

    class Asked(Request):
        def get_response_sender(self) -> Any:
            return types.SimpleNamespace(send=lambda response, flags: None)

    for value in ("on", ""):
        monkeypatch.setenv("_LEGOKV_ERROR_CODES", value)
        TensorResponder(tensors, Asked()).fail(NotFound("no document"))
    assert said == [("legokv error NOT_FOUND no document", "code 5"), ("no document", "code 5")]

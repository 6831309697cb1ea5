"""No tensor that Triton would refuse reaches it over gRPC: it keeps a descriptor for each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from paths import ROOT
from tritonclient.grpc import service_pb2

from legokv.errors import InvalidRequest, NotFound
from legokv.serving.front.tensor_check import check_request, models_in, parse_request

MODELS = models_in(ROOT / "model_repo")


def tensor(name: str, datatype: str, shape: list[int], raw: bytes = b"") -> Any:
    one = service_pb2.ModelInferRequest()
    made = one.inputs.add(name=name, datatype=datatype, shape=shape)
    return made, raw


def request(model: str, *tensors: tuple[Any, bytes]) -> Any:
    made = service_pb2.ModelInferRequest(model_name=model)
    for one, raw in tensors:
        made.inputs.add().CopyFrom(one)
        made.raw_input_contents.append(raw)
    return made


def text(name: str = "text_input", *words: bytes, shape: list[int] | None = None) -> Any:
    raw = b"".join(len(word).to_bytes(4, "little") + word for word in words or (b"Who?",))
    return tensor(name, "BYTES", shape or [1, len(words) or 1], raw)


def test_what_tritonclient_sends_is_taken() -> None:
    words = triton.InferInput("stop_words", [1, 2], "BYTES")
    words.set_data_from_numpy(np.array([[b"a", b"bc"]], np.object_))
    number = triton.InferInput("temperature", [1, 1], "FP32")
    number.set_data_from_numpy(np.array([[0.5]], np.float32))
    tensors = [(t._get_tensor(), t._get_content()) for t in (words, number)]
    check_request(request("generate", text(), *tensors), MODELS)
    check_request(request("documents", text("request", b"{}", shape=[1])), MODELS)


def test_contents_by_type_are_taken_as_raw_ones_are() -> None:
    made = service_pb2.ModelInferRequest(model_name="generate")
    one = made.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    one.contents.bytes_contents.append(b"Who?")
    check_request(made, MODELS)
    none = made.inputs.add(name="stop_words", datatype="BYTES", shape=[1, 0])
    with pytest.raises(InvalidRequest, match="stop_words has no elements, and no raw contents"):
        check_request(made, MODELS)
    made.inputs.remove(none)
    one.contents.int_contents.append(1)
    with pytest.raises(InvalidRequest, match="bytes_contents, its shape says 1, and int_contents"):
        check_request(made, MODELS)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([text(shape=[2, 1])], r"text_input has shape \[2, 1\], \[1, 1\] is taken"),
        ([text(shape=[1])], r"shape \[1\]"),
        ([text(shape=[1, 1, 1])], r"shape \[1, 1, 1\]"),
        ([text(shape=[1, -1])], r"shape \[1, -1\]"),
        ([text(shape=[1, 2**40])], r"shape \[1, 1099511627776\]"),
        ([text("text_input", b"a", b"b", shape=[1, 1])], "2 strings, its shape says 1"),
        ([tensor("text_input", "BYTES", [1, 1], b"\xff\xff\xff\xffab")], "-1 strings"),
        ([tensor("text_input", "INT32", [1, 1], b"\0\0\0\0")], "type 'INT32', BYTES is taken"),
        ([text(), tensor("max_tokens", "INT32", [1, 1], b"\0")], "1 bytes, its shape says 4"),
        ([text(), text("stop_words", b"a", shape=[1, 2**33])], "8589934592 elements, at most"),
        ([text(), text()], "given twice"),
        ([text(), text("beam_search")], "unknown input 'beam_search'; known are"),
    ],
)
def test_a_tensor_that_is_not_the_config_s_is_refused_with_both(
    tensors: list[Any], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        check_request(request("generate", *tensors), MODELS)


def test_a_tensor_that_must_be_there_is_missed_by_name() -> None:
    with pytest.raises(InvalidRequest, match="'request' is missing"):
        check_request(request("documents"), MODELS)
    # Triton 24.10 ended of it.
    with pytest.raises(InvalidRequest, match="'text_input' is missing, or 'messages'"):
        check_request(request("generate"), MODELS)


def add_region(made: Any) -> None:
    made.inputs[0].parameters["shared_memory_region"].string_param = "evil"


def add_output_region(made: Any) -> None:
    made.outputs.add(name="text_output").parameters["shared_memory_region"].string_param = "evil"


def add_classes(made: Any) -> None:
    made.outputs.add(name="text_output").parameters["classification"].int64_param = 0


def add_output(made: Any) -> None:
    made.outputs.add(name="secrets")


def parameter(name: str, **value: Any) -> Callable[[Any], None]:
    def add(made: Any) -> None:
        made.parameters[name].SetInParent()
        for kind, content in value.items():
            setattr(made.parameters[name], kind, content)

    return add


def add_raw(made: Any) -> None:
    made.raw_input_contents.append(b"")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add_region, "lies in shared memory"),
        (add_output_region, "lies in shared memory"),
        (add_classes, "takes no parameters"),
        (add_output, "unknown output 'secrets'"),
        (add_raw, "2 raw contents come with 1 inputs"),
        (parameter("priority", string_param="1"), "'priority' is string_param, int64_param or u"),
        (parameter("timeout", bool_param=True), "'timeout' is bool_param, int64_param is taken"),
        (parameter("sequence_end", int64_param=1), "is int64_param, bool_param is taken"),
        (parameter("stop_words"), "'stop_words' is nothing, int64_param or bool_param or"),
        (parameter("priority", int64_param=-1), "priority is -1, 0 or more is taken"),
        (parameter("sequence_id", string_param="a" * 129), "129 characters, at most 128 fit"),
        (lambda made: setattr(made, "id", "a\0b"), "id has a zero byte at character 1"),
        (parameter("triton_x", bool_param=True), "unknown parameter 'triton_x'"),
    ],
)
def test_what_else_a_request_asks_is_checked(change: Callable[[Any], None], reason: str) -> None:
    made = request("generate", text())
    change(made)
    with pytest.raises(InvalidRequest, match=reason):
        check_request(made, MODELS)


@pytest.mark.parametrize("model", ["engine", "", "../engine", "documents "])
def test_no_other_model_is_reached(model: str) -> None:
    with pytest.raises(NotFound, match="documents and generate are"):
        check_request(request(model, text()), MODELS)


@pytest.mark.parametrize("version", ["7", "01", "x", "-1", "1 "])
def test_no_other_version_is_reached(version: str) -> None:
    made = request("generate", text())
    made.model_version = "1"
    check_request(made, MODELS)
    made.model_version = version
    with pytest.raises(NotFound, match=f"no version '{version}' of generate: 1 is there"):
        check_request(made, MODELS)


def test_bytes_that_are_no_request_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="not a ModelInferRequest"):
        parse_request(b"\xff" * 20)

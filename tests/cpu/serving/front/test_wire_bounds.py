"""A gRPC message is counted before it is parsed, for each field becomes an object."""

import time

import pytest
from tritonclient.grpc import service_pb2

from legokv.errors import InvalidRequest
from legokv.serving.front.tensor_check import parse_request
from legokv.serving.front.wire_bounds import MAX_FIELDS, check_wire

EMPTY_INPUT, EMPTY_PARAMETER = b"\x2a\x00", b"\x22\x00"
NAME = b"\x0a\x09documents"


def field(number: int, content: bytes) -> bytes:
    length = len(content)
    digits = bytearray()
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *digits, length]) + content


def request() -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name="generate", id="a", model_version="1")
    tensor = message.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(b"Who?")
    message.parameters["x"].double_param = 0.5
    message.raw_input_contents.append(b"\4\0\0\0Who?")
    return message


def test_a_whole_request_passes_as_it_is() -> None:
    message = request()
    assert parse_request(message.SerializeToString()) == message


@pytest.mark.parametrize(
    "body",
    [
        NAME + EMPTY_INPUT * 1_000_000,
        NAME + EMPTY_PARAMETER * 1_000_000,
        NAME + field(5, EMPTY_PARAMETER * 1_000_000),
        NAME + field(5, field(5, b"\x42\x00" * 1_000_000)),
        NAME + field(6, EMPTY_PARAMETER * 1_000_000),
        NAME + b"\x3a\x00" * 1_000_000,
    ],
    ids=["inputs", "parameters", "an input's", "its contents", "an output's", "raw contents"],
)
def test_many_fields_are_refused_soon_with_the_bound(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InvalidRequest, match=f"more than {MAX_FIELDS} fields"):
        parse_request(body)
    assert time.process_time() - started < 1


def test_a_shape_of_a_million_numbers_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"a shape of 1000000 bytes, 256 fit"):
        parse_request(NAME + field(5, field(3, b"\x01" * 1_000_000)))


@pytest.mark.parametrize("cut", range(2, 60, 4))
def test_a_message_cut_short_is_refused_in_a_sentence(cut: int) -> None:
    whole = request().SerializeToString()
    with pytest.raises(InvalidRequest, match="not a ModelInferRequest"):
        parse_request(whole[:-cut] + b"\xff")


def test_what_may_be_large_is_not_looked_into() -> None:
    check_wire(NAME + field(7, b"\x2a\x00" * 1_000_000))


@pytest.mark.parametrize(("number", "name"), [(1, "model_name"), (2, "model_version"), (3, "id")])
def test_a_name_or_id_that_is_no_utf_8_is_refused_with_the_byte(number: int, name: str) -> None:
    body = NAME + field(number, "é".encode() + b"\xed\xa0")
    with pytest.raises(InvalidRequest, match=f"{name} is not UTF-8: byte 0xed at offset 2 of 4"):
        parse_request(body)

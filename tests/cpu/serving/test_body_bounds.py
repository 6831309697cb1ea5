"""A JSON text's depth and members are counted without parsing it, in time linear in its length."""

import json
import time
from contextlib import suppress

import pytest

from legokv.errors import InvalidRequest
from legokv.serving.body_bounds import MAX_DEPTH, MAX_MEMBERS, check_json


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_what_is_nested_too_deep_is_refused_with_the_depth(opening: bytes) -> None:
    depth = opening.count(b"[") + opening.count(b"{")
    check_json(opening * (MAX_DEPTH // depth))
    with pytest.raises(InvalidRequest, match=rf"{MAX_DEPTH + depth} objects.* {MAX_DEPTH} fit"):
        check_json(opening * (MAX_DEPTH // depth + 1))


def test_what_killed_triton_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"150000 members, at most {MAX_MEMBERS}"):
        check_json(b"[" * 150_000)


def test_too_many_members_are_refused_and_brackets_in_texts_are_none() -> None:
    check_json(json.dumps({"text_input": "[{," * MAX_MEMBERS + '\\"\\\\'}).encode())
    check_json(json.dumps(["a"] * (MAX_MEMBERS - 1)).encode())
    with pytest.raises(InvalidRequest, match="members"):
        check_json(json.dumps(["a"] * (MAX_MEMBERS + 1)).encode())


@pytest.mark.parametrize(
    "text",
    [b'"' + b'\\"' * 2**21, b'"' * (2**24), b"]" * 2**22, b'"\\', b"\\" * 2**22, b'"a\\"[' * 2**20],
)
def test_no_broken_text_takes_long(text: bytes) -> None:
    began = time.process_time()
    with suppress(InvalidRequest):
        check_json(text)
    assert time.process_time() - began < 2


def test_a_bracket_behind_a_text_s_end_counts() -> None:
    with pytest.raises(InvalidRequest, match="33 objects"):
        check_json(b'{"a\\\\":' + b"[" * 32)

"""What is read of `messages` and `tools`, and what is refused with its place and numbers."""

import json
from typing import Any

import pytest

from legokv.errors import InvalidRequest
from legokv.serving.conversation_reading import (
    MAX_DEPTH,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOL_CALLS,
    MAX_TOOLS,
    MAX_VALUES,
    read_conversation,
)
from legokv.text.conversation import DocumentPart, Turn

ASKED = {"role": "user", "content": "Why?"}
TEXT = {"type": "text", "text": "a"}


def read(*messages: Any, tools: Any = None, most: int = 1000) -> tuple[Turn, ...]:
    told = None if tools is None else json.dumps(tools)
    return read_conversation(json.dumps(messages), told, most).turns


def call(**changes: Any) -> dict[str, Any]:
    return {"id": "a1", "type": "function", "function": {"name": "f"}, **changes}


def calling(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


def test_parts_keep_their_order_and_lose_the_blanks_at_both_ends() -> None:
    parts = [
        {"type": "text", "text": "  See "},
        {"type": "text", "text": "this: "},
        {"type": "document", "id": "d1"},
        {"type": "text", "text": " and why?\n"},
    ]
    (turn,) = read({"role": "user", "content": parts})
    assert turn == Turn("user", ("See this: ", DocumentPart("d1"), " and why?"))


def test_arguments_in_json_are_an_object_and_others_stay_as_they_are() -> None:
    given = [call(function={"name": "f", "arguments": text}) for text in ('{"a": [1]}', "no {")]
    turn = read(calling(*given), ASKED)[0]
    assert [c["function"]["arguments"] for c in turn.tool_calls] == [{"a": [1]}, "no {"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "'messages' is an empty list"),
        ([ASKED] * (MAX_MESSAGES + 1), f"has {MAX_MESSAGES + 1} messages, at most {MAX_MESSAGES}"),
        ([ASKED, "Why?"], "message 2 of 2 is an object with 'role' and 'content', not 'Why\\?'"),
        ([{"content": "Why?"}], "message 1 of 1: 'role' is missing"),
        (
            [{**ASKED, "role": "critic"}],
            "'role' is one of system, developer, user, assistant, tool",
        ),
        ([{**ASKED, "mood": 1}], "message 1 of 1: unknown field 'mood'"),
        ([{"role": "user"}], "message 1 of 1: 'content' is missing"),
        ([{**ASKED, "content": 7}], "'content' is a text or a list of parts, not a whole number"),
        ([{**ASKED, "content": " \n"}], "message 1 of 1 is empty: nothing is asked"),
        ([{**ASKED, "content": [TEXT, {"type": "image_url"}]}], "message 1 of 1: part 2 of 2 is"),
        ([{**ASKED, "content": [{"type": "document"}]}], "part 1 of 1: 'id' is missing"),
        ([{**ASKED, "content": [{"type": "document", "id": "a" * 65}]}], "has 65 characters"),
        ([{**ASKED, "content": [TEXT] * (MAX_PARTS + 1)}], f"has {MAX_PARTS + 1} parts, at most"),
        ([{**ASKED, "content": "a" * 1001}], "1001 bytes together, at most 1000 are taken"),
        ([ASKED] * 2 + [{**ASKED, "content": "é" * 498}], "have 1004 bytes together, at most 1000"),
        ([{**ASKED, "content": "\ud800"}], "not UTF-8"),
        ([{**ASKED, "name": "a" * 65}], "'name' has 65 characters, at most 64"),
        ([{**ASKED, "tool_calls": [call()]}], "'tool_calls' belong to the role assistant"),
        ([{**ASKED, "tool_call_id": "a1"}], "'tool_call_id' belongs to the role tool, not to user"),
        ([{**ASKED, "role": "tool", "tool_call_id": "<|a|>"}], "of letters, digits, dashes"),
        ([calling(call(id="a b"))], "'id' is of letters, digits, dashes and underscores"),
        ([calling({"id": "a"})], "has a 'function' with its 'name'"),
        ([calling(*[call()] * (MAX_TOOL_CALLS + 1))], f"'tool_calls' has {MAX_TOOL_CALLS + 1}"),
        ([calling(call(function={"name": "f", "arguments": nested(MAX_DEPTH)}))], "more than 16"),
        ([calling(call(more=[0] * MAX_VALUES))], r"'tool_calls' has \d+ names and values, at most"),
    ],
)
def test_a_message_that_is_wrong_is_refused_with_its_place(messages: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read(*messages)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "'messages': the request is not JSON"),
        ("{}", "'messages' is a JSON array, not an object"),
        ("[1]}, {", "'messages': the request is not JSON"),
        ('[{"role": "user", "role": "tool"}]', "has 'role' twice"),
        ("[" * 100_000, "'messages': the request is nested too deep"),
        (f'["{"a" * 1_100_000}"]', r"'messages' has \d+ bytes, at most 1054576 are taken"),
    ],
)
def test_what_is_no_list_of_messages_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read_conversation(text, None, 1000)


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ({}, "'tools' is a JSON array, not an object"),
        ([1], "'tools' is a list of objects, one is a whole number"),
        ([{}] * (MAX_TOOLS + 1), f"'tools' has {MAX_TOOLS + 1} objects, at most {MAX_TOOLS}"),
        ([nested(MAX_DEPTH + 1)], "'tools' has more than 16 objects and lists inside one another"),
        ([{"a": "b" * 2**18}], "'tools' has 262155 bytes, at most 262144 are taken"),
        ([{"a": [0] * MAX_VALUES}], f"names and values, at most {MAX_VALUES} are taken"),
    ],
)
def test_tools_that_are_wrong_are_refused(tools: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read(ASKED, tools=tools)

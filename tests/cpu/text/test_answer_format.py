"""Formats of answers as clients write them."""

import json

import pytest

from legokv.errors import InvalidRequest
from legokv.text.answer_format import format_text, read_format


def test_a_format_is_openai_s_shape_or_a_regex_or_a_choice():
    def kind(**record):
        wanted = read_format(json.dumps(record))
        return wanted and (wanted.kind, json.loads(wanted.source))

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"name": "an-a_1", "schema": schema, "strict": True, "description": "an a"}
    assert read_format(None) is None
    assert kind(type="text") is None
    assert kind(type="json_object") == ("json_schema", {"type": "object"})
    assert kind(type="json_schema", json_schema=named) == ("json_schema", schema)
    assert kind(type="json_schema", json_schema={"schema": schema}) == ("json_schema", schema)
    assert kind(type="choice", choice=["a", "b"]) == ("choice", ["a", "b"])
    assert read_format('{"type": "regex", "regex": "a+"}').source == "a+"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "response_format is not JSON"),
        ("{", "response_format is not JSON"),
        ('{"type": "json_object", "x": NaN}', "NaN is no number there"),
        ("[" * 100_000, "response_format is nested too deep"),
        ("[1]", r"response_format is a JSON object, not \[1\]"),
        ('{"type": "xml"}', "type is one of text, json_object, .*, not 'xml'"),
        ('{"type": ["text"]}', r'not \["text"\]'),
        ('{"type": "json_object", "schema": {}}', "type json_object has 'schema'; known are type"),
        ('{"type": "json_schema"}', "response_format of type json_schema has no json_schema"),
        ('{"type": "json_schema", "json_schema": {"name": "a"}}', "schema is a JSON .*, not null"),
        ('{"type": "json_schema", "json_schema": {"schema": true}}', "a JSON object, not true"),
        ('{"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}', "not 'a b'"),
        (
            '{"type": "json_schema", "json_schema": {"strict": 1, "schema": {}}}',
            "strict is true or",
        ),
        ('{"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}', "json_schema has 'x'"),
        ('{"type": "regex", "regex": 7}', "regex is a text, not 7"),
        ('{"type": "regex", "regex": "\\ud800"}', "half a surrogate pair at character 0"),
        ('{"type": "choice", "choice": []}', r"a list of 1 text or more, not \[\]"),
        ('{"type": "choice", "choice": "ab"}', "a list of 1 text or more, not 'ab'"),
        ('{"type": "choice", "choice": ["a", ""]}', "a text of choice is empty"),
        (json.dumps({"type": "choice", "choice": ["a"] * 1025}), "has 1025 texts, at most 1024"),
        (json.dumps({"type": "regex", "regex": "a" * 131072}), "has 131102 bytes, at most 131072"),
    ],
)
def test_what_is_no_format_is_refused_with_what_is_wrong(text, message):
    with pytest.raises(InvalidRequest, match=message):
        read_format(text)


def test_a_format_may_come_as_an_object():
    assert json.loads(format_text({"type": "text"})) == {"type": "text"}
    assert format_text('{"type": "text"}') == '{"type": "text"}'
    with pytest.raises(InvalidRequest, match="response_format is no JSON"):
        format_text({"type": object()})

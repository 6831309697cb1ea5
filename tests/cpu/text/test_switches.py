"""What a request or a setting may set in a chat template."""

import json

import pytest

from legokv.errors import InvalidRequest
from legokv.text.switches import parse_switches


def test_switches_are_the_members_of_a_json_object() -> None:
    text = '{"enable_thinking": false, "date_string": "26 Jul 2024", "tools": ["a", {"b": 1.5}]}'
    assert parse_switches(text, "x") == {
        "enable_thinking": False,
        "date_string": "26 Jul 2024",
        "tools": ["a", {"b": 1.5}],
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "x is not JSON"),
        ("{", "x is not JSON"),
        ("[" * 4000, "x is not JSON"),
        ("[1]", "x is a JSON object, not a list"),
        ("null", "x is a JSON object, not null"),
        ('{"a": "%s"}' % ("b" * 4096), "x has 4105 bytes, at most 4096 are taken"),
        (json.dumps({f"a{n}": 1 for n in range(17)}), "x has 17 members, at most 16"),
        ('{"a": [[[[1]]]]}', "nested deeper than 4"),
        ('{"a": NaN}', "a number that is none"),
        ('{"a": "<|im_end|>"}', "holds the character '<'"),
        ('{"a": ["[INST]"]}', r"holds the character '\['"),
        ('{"a": {"b\\n": 1}}', "holds the character"),
        ('{"a": "\\ud800"}', "holds the character"),
    ],
)
def test_what_is_no_switch_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_switches(text, "x")

"""Calls are found in what each family writes, whole or in pieces; all else stays text."""

import json

import pytest

from legokv.errors import ApiRefused
from legokv.serving.gateway.tool_calls import (
    ToolCall,
    ToolForm,
    ToolReader,
    tool_form_of,
    tools_of,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = ("weather", {"city": "Vellin"})
NAMES = ("weather", "clock")
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Vellin"}}\n</tool_call>'
LLAMA = '{"name": "weather", "parameters": {"city": "Vellin"}}'
MISTRAL = '[{"name": "weather", "arguments": {"city": "Vellin"}}]'
WRITTEN = [
    (ToolForm.HERMES, HERMES, "", [CALL]),
    (ToolForm.HERMES, f"I look.\n{HERMES}\n{HERMES}", "I look.", [CALL, CALL]),
    (ToolForm.HERMES, f"{HERMES} Done.", " Done.", [CALL]),
    (ToolForm.HERMES, HERMES.removesuffix("\n</tool_call>"), "", [CALL]),
    (ToolForm.HERMES, "a < b, and <tool_ is no call", "a < b, and <tool_ is no call", []),
    (ToolForm.HERMES, "<tool_call>no</tool_call>", "<tool_call>no</tool_call>", []),
    (ToolForm.LLAMA3, LLAMA, "", [CALL]),
    (ToolForm.LLAMA3, f"<|python_tag|>{LLAMA}; {LLAMA}", "", [CALL, CALL]),
    (ToolForm.LLAMA3, '{"name": 7}', '{"name": 7}', []),
    (ToolForm.LLAMA3, f"It is {LLAMA}", f"It is {LLAMA}", []),
    (ToolForm.MISTRAL, f"[TOOL_CALLS]{MISTRAL}", "", [CALL]),
    (ToolForm.MISTRAL, MISTRAL, "", [CALL]),
    (ToolForm.MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Vellin"}', "", [CALL]),
    (ToolForm.MISTRAL, 'weather{"city": "Vellin"}', "", [CALL]),
    (ToolForm.MISTRAL, "[1] says so.", "[1] says so.", []),
]  # fmt: skip


def read(form: ToolForm, pieces: list[str]) -> tuple[str, list[tuple[str, object]]]:
    reader = ToolReader(form, NAMES)
    found = [item for piece in pieces for item in reader.push(piece)]
    found += reader.end()
    calls = [item for item in found if isinstance(item, ToolCall)]
    assert len({call.id for call in calls}) == len(calls)
    text = "".join(item for item in found if isinstance(item, str))
    return text, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(("form", "written", "text", "calls"), WRITTEN)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_an_answer_reads_the_same_whole_and_in_pieces_of_any_size(
    form: ToolForm, written: str, text: str, calls: list[object], size: int
) -> None:
    pieces = [written[n : n + size] for n in range(0, len(written), size)]
    assert read(form, pieces) == (text, calls)


def test_text_that_begins_no_call_is_not_held_back() -> None:
    reader = ToolReader(ToolForm.HERMES, NAMES)
    assert list(reader.push("The harbour <")) == ["The harbour"]
    assert list(reader.push("b> is")) == [" <b> is"]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", ToolForm.HERMES),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}", ToolForm.MISTRAL),
        ("{% if tools %}Environment: ipython{% endif %}", ToolForm.LLAMA3),
        ("{{ messages }} <tool_call>", None),
        ("{% if tools %}<tool_call>name<arg_key>city</arg_key>{% endif %}", None),
        ("{% if tools %}<tool_call><invoke name=...>{% endif %}", None),
        ("{% if tools %}<tool_call><function={{ name }}>{% endif %}", ToolForm.HERMES),
        (None, None),
    ],
)
def test_a_template_tells_the_family(template: str | None, form: ToolForm | None) -> None:
    assert tool_form_of(template) is form


def test_a_forced_call_has_a_schema_of_the_tools_it_may_be() -> None:
    tools = tools_of({"tools": [WEATHER, CLOCK], "tool_choice": "required"}, ToolForm.HERMES)
    schema = tools.response_format()["json_schema"]["schema"]
    assert [one["properties"]["name"] for one in schema["anyOf"]] == [
        {"const": "weather"},
        {"const": "clock"},
    ]
    chosen = {"type": "function", "function": {"name": "clock"}}
    one = tools_of({"tools": [WEATHER, CLOCK], "tool_choice": chosen}, ToolForm.HERMES)
    assert one.response_format()["json_schema"]["schema"]["properties"]["name"] == {
        "const": "clock"
    }
    assert list(one.reader(ToolForm.HERMES).push("x")) == ["x"]


@pytest.mark.parametrize(
    ("values", "form", "said"),
    [
        ({"tools": [WEATHER]}, None, "no place for tools"),
        ({"tools": [{"type": "x"}]}, ToolForm.HERMES, r"tools\[0\] is of type 'function'"),
        ({"tool_choice": "auto"}, ToolForm.HERMES, "'tool_choice' needs 'tools'"),
        ({"tools": [WEATHER], "tool_choice": "sun"}, ToolForm.HERMES, "names one of the tools"),
    ],
)
def test_wrong_tools_are_refused_by_name(
    values: dict[str, object], form: ToolForm | None, said: str
) -> None:
    with pytest.raises(ApiRefused, match=said):
        tools_of(values, form)


def test_tools_that_may_not_be_called_are_not_shown_to_the_model() -> None:
    assert tools_of({"tools": [WEATHER], "tool_choice": "none"}, None).tools == ()

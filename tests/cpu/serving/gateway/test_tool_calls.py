"""Calls are found in what each family writes, whole or in pieces; all else stays text."""

import json
import time

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


TEXTS = frozenset({("weather", "city")})


def written_in_tags(inner: str) -> list[str | ToolCall]:
    reader = ToolReader(ToolForm.HERMES, NAMES, TEXTS)
    return [*reader.push(f"<tool_call>\n{inner}\n</tool_call>"), *reader.end()]


@pytest.mark.parametrize(
    ("inner", "arguments"),
    [
        ("<function=weather></function>", {}),
        ("<function=weather>", {}),
        ("<function=weather>\n<parameter=city>\n7\n</parameter>\n</function>", {"city": "7"}),
        ("<function=weather><parameter=n>7</parameter>", {"n": 7}),
        ("<function=weather><parameter=n><parameter=m></parameter>", {"n": "<parameter=m>"}),
        ("<function=weather><parameter=n>1e999</parameter>", {"n": "1e999"}),
        ("<function=weather><parameter=n>[NaN]</parameter>", {"n": "[NaN]"}),
        ('<function=weather><parameter=n>"\\ud800"</parameter>', {"n": '"\\ud800"'}),
        ("<function=weather>so<parameter=n>7</parameter>", None),
        ("<function=weather><parameter=n>7</parameter>so", None),
        ("<function=weather><parameter=n>7", None),
    ],
)
def test_a_call_in_tags_is_read_or_stays_text(inner: str, arguments: object) -> None:
    (item,) = written_in_tags(inner)
    if arguments is None:
        assert item == f"<tool_call>\n{inner}\n</tool_call>"
    else:
        assert isinstance(item, ToolCall)
        assert (item.name, json.loads(item.arguments)) == ("weather", arguments)


@pytest.mark.parametrize(
    "value",
    ["1e999", "NaN", "-Infinity", '"\\ud800"', "[" * 900 + "1e999" + "]" * 900],
)
@pytest.mark.parametrize(
    ("form", "around"),
    [
        (ToolForm.HERMES, ("<tool_call>", "</tool_call>")),
        (ToolForm.HERMES, ("<tool_call>", "")),
        (ToolForm.LLAMA3, ("", "")),
        (ToolForm.MISTRAL, ("[TOOL_CALLS][", "]")),
    ],
)
def test_a_call_that_no_json_can_say_stays_text(
    form: ToolForm, around: tuple[str, str], value: str
) -> None:
    written = f'{{"name": "weather", "arguments": {{"city": {value}}}}}'.join(around)
    assert read(form, [written]) == (written, [])


def test_a_named_call_that_no_json_can_say_stays_text() -> None:
    written = '[TOOL_CALLS]weather[ARGS]{"city": 1e999}'
    assert read(ToolForm.MISTRAL, [written]) == (written, [])


@pytest.mark.parametrize(
    ("form", "written"),
    [
        (ToolForm.HERMES, f"<tool_call><function=a>{' ' * 200_000}x</tool_call>"),
        (ToolForm.HERMES, f"<tool_call><function=a>{' ' * 200_000}x"),
        (ToolForm.HERMES, f"<tool_call><function=a>{'<parameter=a>' * 20_000}</tool_call>"),
        (ToolForm.HERMES, "<tool_call>" * 20_000),
        (ToolForm.HERMES, "<tool_call>x</tool_call>" * 50_000),
        (ToolForm.HERMES, " " * 200_000 + "x"),
        (ToolForm.LLAMA3, "{};" * 200_000),
        (ToolForm.LLAMA3, "{}" + " " * 200_000 + "x"),
        (ToolForm.MISTRAL, "weather{}" * 50_000 + "x"),
        (ToolForm.MISTRAL, "[TOOL_CALLS]weather[CALL_ID]" + "a" * 200_000),
        (ToolForm.MISTRAL, "[TOOL_CALLS]weather" + " " * 200_000),
    ],
)
def test_a_long_answer_is_read_in_time_that_grows_with_its_length(
    form: ToolForm, written: str
) -> None:
    started = time.process_time()
    text, calls = read(form, [written])
    assert (text.strip(), calls) == (written.strip(), [])
    assert time.process_time() - started < 1

"""Calls are found in what each family writes, whole or in pieces; all else stays text."""

import itertools
import json
import sys
import time
from types import FrameType
from typing import Any

import pytest

from legokv.errors import ApiRefused
from legokv.serving.gateway import incoming, tool_reading
from legokv.serving.gateway.tool_calls import tool_form_of, tools_of
from legokv.serving.gateway.tool_reading import Arguments, Item, ToolCall, ToolForm, ToolReader

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TEXTS = frozenset({("weather", "city")})
CALL = ("weather", {"city": "Vellin"})
NAMES = ("weather", "clock")
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Vellin"}}\n</tool_call>'
LLAMA = '{"name": "weather", "parameters": {"city": "Vellin"}}'
MISTRAL = '[{"name": "weather", "arguments": {"city": "Vellin"}}]'
BOB = '{"name": "Bob", "parameters": {"a": 1}}'
BOB_BEHIND = '{"parameters": {"a": 1}, "name": "Bob"}'
BOB_IN_TAGS = "<tool_call><function=Bob><parameter=a>1</parameter></function></tool_call>"
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
    (ToolForm.LLAMA3, f"{BOB} is the record.", f"{BOB} is the record.", []),
    (ToolForm.LLAMA3, BOB_BEHIND, BOB_BEHIND, []),
    (ToolForm.HERMES, f"<tool_call>{BOB}</tool_call>", f"<tool_call>{BOB}</tool_call>", []),
    (ToolForm.HERMES, BOB_IN_TAGS, BOB_IN_TAGS, []),
    (ToolForm.MISTRAL, f"[{BOB}]", f"[{BOB}]", []),
    (ToolForm.MISTRAL, "clock{x} is a set.", "clock{x} is a set.", []),
    (ToolForm.MISTRAL, "clock {", "clock {", []),
    (ToolForm.MISTRAL, "clock{ 1: 2 }", "clock{ 1: 2 }", []),
    (ToolForm.MISTRAL, 'clock { "at": 7 }', "", [("clock", {"at": 7})]),
    (ToolForm.MISTRAL, "clock{ \n}", "", [("clock", {})]),
    (ToolForm.MISTRAL, f"[TOOL_CALLS]{MISTRAL}", "", [CALL]),
    (ToolForm.MISTRAL, MISTRAL, "", [CALL]),
    (ToolForm.MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Vellin"}', "", [CALL]),
    (ToolForm.MISTRAL, 'weather{"city": "Vellin"}', "", [CALL]),
    (ToolForm.MISTRAL, "[1] says so.", "[1] says so.", []),
]  # fmt: skip


def items_of(form: ToolForm, pieces: list[str], texts: Any = ()) -> list[Item]:
    reader = ToolReader(form, NAMES, texts)
    return [*(item for piece in pieces for item in reader.push(piece)), *reader.end()]


def joined(items: list[Item]) -> tuple[str, list[tuple[str, str]]]:
    """Text, and each call's name with its arguments as they were written."""
    text, calls = "", []
    for item in items:
        if isinstance(item, ToolCall):
            calls.append((item.name, ""))
        elif isinstance(item, Arguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + item.text)
        else:
            text += item
    ids = [item.id for item in items if isinstance(item, ToolCall)]
    assert len({*ids}) == len(ids)
    return text, calls


def cut(written: str, size: int) -> list[str]:
    return [written[n : n + size] for n in range(0, len(written), size)]


def read(form: ToolForm, pieces: list[str]) -> tuple[str, list[tuple[str, object]]]:
    text, calls = joined(items_of(form, pieces))
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize(("form", "written", "text", "calls"), WRITTEN)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_an_answer_reads_the_same_whole_and_in_pieces_of_any_size(
    form: ToolForm, written: str, text: str, calls: list[object], size: int
) -> None:
    assert read(form, cut(written, size)) == (text, calls)


LONG = {"city": 'Vel"lin\n' * 40, "days": [1.5, -2, True, None, {"ü": "\\u00fc \U0001f600"}]}
DUMPED = json.dumps(LONG)
IN_TAGS = (
    f"<tool_call><function=weather><parameter=city>\n{LONG['city']}\n</parameter>"
    f"<parameter=days>{json.dumps(LONG['days'])}</parameter></function></tool_call>"
)
STREAMED = [
    (ToolForm.HERMES, f'<tool_call>{{"name": "weather", "arguments": {DUMPED}}}</tool_call>'),
    (ToolForm.HERMES, IN_TAGS),
    (ToolForm.LLAMA3, f'{{"name": "weather", "parameters": {DUMPED}}}'),
    (ToolForm.LLAMA3, f'<|python_tag|>{{"id": 7, "name": "weather", "arguments": {DUMPED}}}'),
    (ToolForm.MISTRAL, f'[TOOL_CALLS][{{"name": "weather", "arguments": {DUMPED}, "id": "a"}}]'),
    (ToolForm.MISTRAL, f"[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{DUMPED}"),
    (ToolForm.MISTRAL, f"weather{DUMPED}"),
]


@pytest.mark.parametrize(("form", "written"), STREAMED)
def test_arguments_come_as_they_are_written_and_join_to_those_of_the_whole_answer(
    form: ToolForm, written: str
) -> None:
    whole = joined(items_of(form, [written], TEXTS))
    assert [(name, json.loads(text)) for name, text in whole[1]] == [("weather", LONG)]
    for size in (1, 3, 17):
        items = items_of(form, cut(written, size), TEXTS)
        assert joined(items) == whole
        # In so many pieces as they came, but for numbers, escapes and a parameter of JSON in tags.
        num_pieces = sum(isinstance(item, Arguments) for item in items)
        assert num_pieces > len(LONG["city"]) / size * 0.8


@pytest.mark.parametrize(("form", "written"), STREAMED)
def test_an_answer_cut_anywhere_has_what_was_written_of_its_arguments(
    form: ToolForm, written: str
) -> None:
    whole = joined(items_of(form, [written], TEXTS))[1][0][1]
    for end in range(0, len(written), 13):
        text, calls = joined(items_of(form, [written[:end]], TEXTS))
        assert joined(items_of(form, cut(written[:end], 5), TEXTS)) == (text, calls)
        assert (text == written[:end]) if not calls else whole.startswith(calls[0][1])


@pytest.mark.parametrize(
    ("form", "written"),
    [
        (ToolForm.HERMES, '<tool_call>{"arguments": {"city": "Vellin"}, "name": "weather"}'),
        (ToolForm.HERMES, r'<tool_call>{"name": "weather", "arguments": "{\"city\": \"Vellin\"}"}'),
        (ToolForm.LLAMA3, '{"parameters": {"city": "Vellin"}, "name": "weather"}'),
    ],
)
def test_arguments_that_only_their_end_tells_come_whole(form: ToolForm, written: str) -> None:
    items = items_of(form, cut(written, 1))
    assert [type(item) for item in items] == [ToolCall, Arguments]
    assert read(form, [written]) == ("", [CALL])


def test_text_that_begins_no_call_is_not_held_back() -> None:
    reader = ToolReader(ToolForm.HERMES, NAMES)
    assert reader.push("The harbour <") == ["The harbour"]
    assert reader.push("b> is") == [" <b> is"]


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
    assert one.reader(ToolForm.HERMES).push("x") == ["x"]


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
        ("<function=weather><parameter=n>7", None),
    ],
)
def test_a_call_in_tags_is_read_or_stays_text(inner: str, arguments: object) -> None:
    written = f"<tool_call>\n{inner}\n</tool_call>"
    text, calls = joined(items_of(ToolForm.HERMES, [written], TEXTS))
    if arguments is None:
        assert (text, calls) == (written, [])
    else:
        assert [(name, json.loads(given)) for name, given in calls] == [("weather", arguments)]
        assert not text


@pytest.mark.parametrize(
    "value", ["1e999", "NaN", "-Infinity", r'"\ud800"', "01", "tru", "9" * 500, "[" * 40 + "1"]
)
@pytest.mark.parametrize(
    ("form", "around"),
    [
        (ToolForm.HERMES, ('<tool_call>{"name": "weather", "arguments": ', "}</tool_call>")),
        (ToolForm.HERMES, ('<tool_call>{"name": "weather", "arguments": ', "")),
        (ToolForm.LLAMA3, ('{"name": "weather", "arguments": ', "}")),
        (ToolForm.MISTRAL, ('[TOOL_CALLS][{"name": "weather", "arguments": ', "}]")),
        (ToolForm.MISTRAL, ("[TOOL_CALLS]weather[ARGS]", "")),
    ],
)
def test_arguments_end_where_no_json_goes_on_and_the_rest_is_text(
    form: ToolForm, around: tuple[str, str], value: str
) -> None:
    written = f'{{"days": 2, "city": {value}}}'.join(around)
    text, calls = joined(items_of(form, [written]))
    assert joined(items_of(form, cut(written, 1))) == (text, calls)
    ((name, arguments),) = calls
    assert name == "weather"
    assert arguments.startswith('{"days": 2, "city": ')
    assert written == around[0] + arguments + text


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": 7}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": NaN}</tool_call>',
        '<tool_call>{"name": "weather", "days": 01, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "{}',
        '<tool_call>{"name": "weather", "arguments": "not json"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "{[1]: 2, "}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "{1: 2, }"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "[1]"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": ""}</tool_call>',
        r'<tool_call>{"name": "weather", "arguments": "{\"a\": NaN}"}</tool_call>',
        "<tool_call>  ",
    ],
)
def test_what_breaks_off_before_its_arguments_is_text(written: str) -> None:
    for size in (1, 10_000):
        assert read(ToolForm.HERMES, cut(written, size)) == (written, [])


def test_text_before_between_and_behind_calls_is_text() -> None:
    written = f"I look.\n{HERMES} and\n {HERMES}\n\n"
    for size in (1, 5, 10_000):
        assert read(ToolForm.HERMES, cut(written, size)) == ("I look. and", [CALL, CALL])
        assert read(ToolForm.LLAMA3, cut(f"{LLAMA};\n{LLAMA} so", size)) == (" so", [CALL, CALL])


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
    text, calls = joined(items_of(form, [written]))
    # Ten times what it takes; what takes the square takes minutes.
    assert time.process_time() - started < 10
    assert text.strip() == written.strip() or len(calls) == 50_000


def lines_and_most_held(form: ToolForm, pieces: list[str]) -> tuple[int, int]:
    """Lines of Python that the reading of the pieces takes, and the most that waits for one."""
    files = {incoming.__file__, tool_reading.__file__}
    num_lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal num_lines
        if frame.f_code.co_filename not in files:
            return None
        num_lines += event == "line"
        return trace

    reader, most, before = ToolReader(form, NAMES, TEXTS), 0, sys.gettrace()
    sys.settrace(trace)
    try:
        for piece in pieces:
            reader.push(piece)
            most = max(most, reader.num_held)
        reader.end()
    finally:
        sys.settrace(before)
    return num_lines, most


ENDLESS = {
    "text": "word and ",
    "blanks": " ",
    "a call that never begins": '<tool_call>{"name": "weather", "x": [' + "1, ",
    "a name that never ends": '<tool_call>{"name": "' + "w",
    "arguments": '<tool_call>{"name": "weather", "arguments": {"city": "' + "V",
    "numbers": '<tool_call>{"name": "weather", "arguments": {"city": [' + "12, ",
    "arguments before the name": '<tool_call>{"arguments": {"city": "' + "V",
    "arguments in a text": '<tool_call>{"name": "weather", "arguments": "' + "V",
    "a text in tags": "<tool_call><function=weather><parameter=city>" + "V",
    "JSON in tags": "<tool_call><function=weather><parameter=days>" + "7",
}


@pytest.mark.parametrize("begin", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("form", ToolForm)
def test_the_work_for_a_piece_does_not_grow_with_the_pieces_before_it(
    form: ToolForm, begin: str
) -> None:
    if form is not ToolForm.HERMES:
        begin = begin.removeprefix("<tool_call>")
    last = begin.rpartition('"')[2][-3:] if begin.endswith(", ") else begin[-1]

    def answer(count: int) -> list[str]:
        return [begin, *itertools.repeat(last, count)]

    (few, held_few), (many, held) = (
        lines_and_most_held(form, answer(count)) for count in (300, 1200)
    )
    assert many < 4.5 * few
    assert held == held_few < 30

"""Tools there and back, by templates of the families' documented shapes: what a client says becomes
the model's prompt, what the model writes becomes calls, and these come back with their results.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from gateway_world import RunningGateway, running_gateway

from legokv.serving.conversation_reading import read_conversation
from legokv.serving.gateway.tool_calls import tool_form_of
from legokv.text.conversation import ConversationFormats
from legokv.text.tokenizer import Tokenizer

HERMES = """{%- if tools %}<|im_start|>system
<tools>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools> Answer a call as <tool_call>{"name": …, "arguments": …}</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == "tool" %}<tool_response>
{{ message.content }}
</tool_response>{% else %}{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TAGGED = HERMES.replace(
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}',
    "<function={{ call.function.name }}>\n{% for key, value in call.function.arguments.items() %}"
    "<parameter={{ key }}>\n{{ value if value is string else value | tojson }}\n</parameter>\n"
    "{% endfor %}</function>",
)
LLAMA3 = """{%- for message in messages %}<|im_start|>{{
"ipython" if message.role == "tool" else message.role }}
{% if loop.first and tools %}Answer a call as {"name": …, "parameters": …}.
{% for tool in tools %}{{ tool | tojson(indent=4) }}
{% endfor %}{% endif %}{% if message.tool_calls %}{% if message.tool_calls | length != 1 %}{{
raise_exception("one call at a time") }}{% endif %}{% set call = message.tool_calls[0].function %}{
"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}{%
elif message.role == "tool" %}{{ message.content | tojson }}{% else %}{{ message.content
}}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_MISTRAL = """{%- for message in messages %}{% if message.role == "user" %}{% if tools and
loop.first %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif
%}[INST]{{ message.content }}[/INST]{% elif message.tool_calls %}%s<|im_end|>{%
elif message.role == "tool" %}{% if message.tool_call_id | length != 9 %}{{
raise_exception("ids have 9 letters") }}{% endif
%}[TOOL_RESULTS]{"content": {{ message.content }}, "call_id": "{{
message.tool_call_id }}"}[/TOOL_RESULTS]{% else %}{{ message.content }}<|im_end|>{% endif
%}{% endfor %}"""
MISTRAL = _MISTRAL.replace(
    "%s",
    "[TOOL_CALLS][{% for call in message.tool_calls %}{% if not loop.first %}, {% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, '
    '"id": "{{ call.id }}"}{% endfor %}]',
)
MISTRAL_NAMED = _MISTRAL.replace(
    "%s",
    "{% for call in message.tool_calls %}{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + "
    "call.function.arguments | tojson | safe }}{% endfor %}",
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("weather", "weather_of_sea")
]
FIRST, SECOND = {"city": "Vellin", "days": 2}, {"city": "7"}
ASKED: Any = [{"role": "user", "content": "Is it <dry>?"}]


@dataclass(frozen=True)
class Family:
    """How one family writes two calls; `takes_two` says whether its template takes both back."""

    template: str
    written: str
    takes_two: bool = True


def hermes(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


FAMILIES = {
    "hermes": Family(HERMES, f"{hermes('weather', FIRST)}\n{hermes('weather_of_sea', SECOND)}"),
    "tagged": Family(
        TAGGED,
        "<tool_call>\n<function=weather>\n<parameter=city>\nVellin\n</parameter>\n<parameter=days>\n"
        "2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=weather_of_sea>\n"
        "<parameter=city>\n7\n</parameter>\n</function>\n</tool_call>",
    ),
    "llama 3": Family(
        LLAMA3,
        f'{{"name": "weather", "parameters": {json.dumps(FIRST)}}}; '
        f'{{"name": "weather_of_sea", "parameters": {json.dumps(SECOND)}}}',
        takes_two=False,
    ),
    "mistral": Family(
        MISTRAL,
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {json.dumps(FIRST)}}}, '
        f'{{"name": "weather_of_sea", "arguments": {json.dumps(SECOND)}}}]',
    ),
    "mistral, named": Family(
        MISTRAL_NAMED,
        f"[TOOL_CALLS]weather[ARGS]{json.dumps(FIRST)}"
        f"[TOOL_CALLS]weather_of_sea[CALL_ID]abcdefghi[ARGS]{json.dumps(SECOND)}",
    ),
    "mistral, its marks hidden": Family(
        MISTRAL_NAMED, f"weather{json.dumps(FIRST)}weather_of_sea{json.dumps(SECOND)}"
    ),
}


@dataclass(frozen=True)
class World:
    family: Family
    gateway: RunningGateway
    formats: ConversationFormats
    tokenizer: Tokenizer

    def prompt(self) -> str:
        """The prompt of what `generate` was asked last."""
        asked = self.gateway.models.asked[-1]
        conversation = read_conversation(asked["messages"], asked.get("tools"), 10**6)
        made = self.formats.prompt(conversation, {})
        ids = [
            *made.head_ids,
            *(i for part in made.rest if not isinstance(part, int) for i in part),
        ]
        return self.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.fixture(params=FAMILIES)
def world(
    request: pytest.FixtureRequest, tiny_engine_folder: Callable[[], Path], tmp_path: Path
) -> Iterator[World]:
    family = FAMILIES[request.param]
    folder = tmp_path / "engine"
    folder.mkdir()
    for file in tiny_engine_folder().iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text(family.template)
    tokenizer = Tokenizer.open(folder)
    formats = ConversationFormats(tokenizer)
    with running_gateway(tmp_path, tool_form_of(family.template)) as gateway:
        yield World(family, gateway, formats, tokenizer)
    formats.close()
    shutil.rmtree(folder)


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls]


def test_calls_come_of_what_the_model_writes_and_go_back_into_its_prompt(world: World) -> None:
    client = world.gateway.openai()
    world.gateway.models.pieces = [world.family.written]
    choice = client.chat.completions.create(model="tiny", messages=ASKED, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert calls_of(choice.message) == [("weather", FIRST), ("weather_of_sea", SECOND)]
    prompt = world.prompt()
    assert "Is it <dry>?" in prompt
    assert prompt.count('"weather_of_sea"') == 1
    made = choice.message.tool_calls if world.family.takes_two else choice.message.tool_calls[:1]
    turns: Any = [
        *ASKED,
        {"role": "assistant", "tool_calls": [call.model_dump() for call in made]},
        *({"role": "tool", "tool_call_id": call.id, "content": "R<a>in."} for call in made),
    ]
    client.chat.completions.create(model="tiny", messages=turns, tools=TOOLS)
    prompt = world.prompt()
    assert prompt.count("R<a>in.") == len(made)
    behind = prompt.partition("Is it <dry>?")[2]
    assert "weather" in behind
    assert "Vellin" in behind
    assert "&" not in behind


def test_a_call_that_was_cut_goes_back_with_the_members_that_are_whole(world: World) -> None:
    client = world.gateway.openai()
    written = world.family.written
    world.gateway.models.pieces = [written[: written.index("Vellin") + 9]]
    world.gateway.models.finish_reason = "length"
    choice = client.chat.completions.create(model="tiny", messages=ASKED, tools=TOOLS).choices[0]
    (call,) = choice.message.tool_calls
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "The call was cut."}
    turns: Any = [*ASKED, choice.message.model_dump(exclude_none=True), result]
    client.chat.completions.create(model="tiny", messages=turns, tools=TOOLS)
    assert "The call was cut." in world.prompt()
    (sent,) = json.loads(world.gateway.models.asked[-1]["messages"])[len(ASKED)]["tool_calls"]
    assert sent["function"]["name"] == "weather"
    assert sent["function"]["arguments"].items() <= FIRST.items()


def cut(text: str, size: int) -> list[str]:
    return [text[place : place + size] for place in range(0, len(text), size)]


def streamed(client: openai.OpenAI) -> tuple[str, list[tuple[str, str]], int]:
    """A stream's text, its calls with their arguments as they came, and in how many pieces."""
    said, names, arguments, num_pieces = "", [], [], 0
    stream: Any = client.chat.completions.create(
        model="tiny", messages=ASKED, tools=TOOLS, stream=True
    )
    for chunk in stream:
        delta = chunk.choices[0].delta
        said += delta.content or ""
        for call in delta.tool_calls or ():
            if call.id is not None:
                assert (call.index, call.type) == (len(names), "function")
                names.append(call.function.name)
                arguments.append("")
            assert call.index == len(names) - 1
            arguments[-1] += call.function.arguments
            num_pieces += 1
    return said, list(zip(names, arguments, strict=True)), num_pieces


def in_blocks(client: anthropic.Anthropic, *, stream: bool) -> Any:
    """The content of an answer in Anthropic's shape, without the calls' ids."""
    tools: Any = [{"name": "weather", "input_schema": PARAMETERS}]
    tools.append({**tools[0], "name": "weather_of_sea"})
    asked: Any = {"model": "tiny", "max_tokens": 9, "messages": ASKED, "tools": tools}
    if stream:
        with client.messages.stream(**asked) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**asked)
    return [block.model_dump(exclude={"id"}) for block in message.content]


def test_a_stream_s_calls_come_in_pieces_that_join_to_those_of_the_whole_answer(
    world: World,
) -> None:
    client = world.gateway.openai()
    other = anthropic.Anthropic(base_url=world.gateway.url, api_key="none", max_retries=0)
    written = world.family.written
    for text in (written, written[: len(written) // 3]):
        world.gateway.models.pieces = [text]
        message = (
            client.chat.completions.create(model="tiny", messages=ASKED, tools=TOOLS)
            .choices[0]
            .message
        )
        calls = [(c.function.name, c.function.arguments) for c in message.tool_calls or ()]
        if text == written:
            assert [(name, json.loads(own)) for name, own in calls] == [
                ("weather", FIRST),
                ("weather_of_sea", SECOND),
            ]
        blocks = in_blocks(other, stream=False)
        for size in (1, 7, len(written)):
            world.gateway.models.pieces = cut(text, size)
            said, pieces_joined, num_pieces = streamed(client)
            assert (said, pieces_joined) == (message.content or "", calls)
            if size == 1 and text == written:
                assert num_pieces > 10
            if text == written:
                assert in_blocks(other, stream=True) == blocks


def test_a_choice_of_tools_is_heard(world: World) -> None:
    client = world.gateway.openai()
    models = world.gateway.models

    def ask(choice: Any, written: str, **more: Any) -> Any:
        models.pieces = [written]
        answer = client.chat.completions.create(
            model="tiny", messages=ASKED, tools=TOOLS, tool_choice=choice, **more
        )
        return answer.choices[0].message

    assert ask("none", world.family.written).content == world.family.written
    assert "tools" not in models.asked[-1]
    assert len(ask("auto", world.family.written).tool_calls) == 2
    assert len(ask("auto", world.family.written, parallel_tool_calls=False).tool_calls) == 1
    forced = json.dumps({"name": "weather", "arguments": FIRST})
    assert calls_of(ask("required", forced)) == [("weather", FIRST)]
    assert (
        len(json.loads(models.asked[-1]["response_format"])["json_schema"]["schema"]["anyOf"]) == 2
    )
    named = {"type": "function", "function": {"name": "weather"}}
    assert calls_of(ask(named, forced)) == [("weather", FIRST)]
    schema = json.loads(models.asked[-1]["response_format"])["json_schema"]["schema"]
    assert schema["properties"] == {"name": {"const": "weather"}, "arguments": PARAMETERS}


def test_what_is_no_call_stays_text_and_what_nothing_called_is_refused(world: World) -> None:
    client = world.gateway.openai()
    for text in ("Dry.", "{}", '{"name": "Dry."', "<tool_call", "[TOOL_CALLS]"):
        world.gateway.models.pieces = [text]
        answer = client.chat.completions.create(model="tiny", messages=ASKED, tools=TOOLS)
        assert answer.choices[0].message.content == text
        assert answer.choices[0].finish_reason == "stop"
    result = {"role": "tool", "tool_call_id": "abcdefghi", "content": "Rain."}
    with pytest.raises(openai.BadRequestError, match=r"result of a call 'abcdefghi'.*: none"):
        client.chat.completions.create(model="tiny", messages=[*ASKED, result], tools=TOOLS)
    function = {"name": "w", "arguments": '{"a" 1}'}
    call = {"id": "abcdefghi", "type": "function", "function": function}
    turns: Any = [*ASKED, {"role": "assistant", "tool_calls": [call]}, result]
    with pytest.raises(openai.BadRequestError, match=r"tool_calls\[0\].function.arguments is nei"):
        client.chat.completions.create(model="tiny", messages=turns, tools=TOOLS)
    other = anthropic.Anthropic(base_url=world.gateway.url, api_key="none", max_retries=0)
    block = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain."}
    with pytest.raises(anthropic.BadRequestError, match="result of a call 'toolu_1'"):
        other.messages.create(
            model="tiny", max_tokens=9, messages=[{"role": "user", "content": [block]}]
        )

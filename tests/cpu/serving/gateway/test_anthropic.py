"""Anthropic's `/v1/messages` by its own client: blocks in, blocks and events out."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from gateway_world import RunningGateway, running_gateway

from legokv.errors import Busy
from legokv.serving.gateway.anthropic import FIELDS, OTHERS
from legokv.serving.gateway.tool_reading import ToolForm

ASKED = [{"role": "user", "content": "Who keeps it?"}]
WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "V"}}</tool_call>'


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path, ToolForm.HERMES) as one:
        yield one


@pytest.fixture
def client(gateway: RunningGateway) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0)


def ask(client: anthropic.Anthropic, **fields: Any) -> Any:
    return client.messages.create(**{"model": "tiny", "max_tokens": 9, "messages": ASKED, **fields})


def messages(gateway: RunningGateway) -> Any:
    return json.loads(gateway.models.asked[-1]["messages"])


def test_a_message_has_the_answer_and_its_counts_apart(client: anthropic.Anthropic) -> None:
    message = ask(client)
    assert [block.text for block in message.content] == ["Orrin keeps it."]
    assert message.stop_reason == "end_turn"
    usage = message.usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (50, 30)
    assert (usage.input_tokens, usage.output_tokens) == (20, 7)


def test_tokens_of_a_message_are_counted_with_its_documents_and_none_is_drawn(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "First."}
    content: list[Any] = [{"type": "document", "source": source}, {"type": "text", "text": "?"}]
    asked: Any = [{"role": "user", "content": content}]
    counted = client.messages.count_tokens(
        model="tiny", messages=asked, system="Briefly.", tools=[WEATHER]
    )
    assert counted.input_tokens == 100
    assert (gateway.models.num_counted, gateway.models.asked) == (1, [])
    for wrong, said in (({"messages": []}, "'messages' is empty"), ({"max_tokens": 3}, "unknown")):
        with pytest.raises(anthropic.BadRequestError, match=said):
            client.messages.count_tokens(
                **{"model": "tiny", "messages": ASKED, "extra_body": wrong}
            )
    with pytest.raises(anthropic.NotFoundError, match="no model 'claude'"):
        client.messages.count_tokens(model="claude", messages=ASKED)


def test_a_stream_has_anthropic_s_events(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    with client.messages.stream(model="tiny", max_tokens=9, messages=ASKED) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert [block.text for block in message.content] == ["Orrin keeps it."]
    assert message.usage.output_tokens == 7
    gateway.models.pieces = ["I look. ", CALL]
    with client.messages.stream(
        model="tiny", max_tokens=9, messages=ASKED, tools=[WEATHER]
    ) as stream:
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert (message.content[1].name, message.content[1].input) == ("weather", {"city": "V"})
    assert message.stop_reason == "tool_use"


def test_documents_come_as_text_base64_content_and_file(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    file = client.files.upload(file=("b.txt", b"Third.", "text/plain"))
    data = base64.b64encode(b"<p>Second.</p>").decode()
    sources = [
        {"type": "text", "media_type": "text/plain", "data": "First."},
        {"type": "base64", "media_type": "text/html", "data": data},
        {"type": "file", "file_id": file.id},
        {"type": "content", "content": [{"type": "text", "text": "Fourth."}]},
    ]
    blocks: list[Any] = [{"type": "document", "source": source} for source in sources]
    blocks[0] |= {"title": "One", "context": "of Vellin", "cache_control": {"type": "ephemeral"}}
    ask(client, messages=[{"role": "user", "content": [*blocks, {"type": "text", "text": "?"}]}])
    (message,) = messages(gateway)
    ids = [part["id"] for part in message["content"] if part["type"] == "document"]
    replies = [
        gateway.models.service.reply({"operation": "get", "id": i, "text": True}) for i in ids
    ]
    texts = [reply["text"] for reply in replies]
    assert texts == ["One\nof Vellin\nFirst.", "Second.", "Third.", "Fourth."]
    lives = [reply["document"]["expires_at"] for reply in replies]
    assert lives[2] is None
    assert lives[1] - lives[0] == pytest.approx(3600 - 300, abs=20)


def test_system_stops_and_tool_results_reach_generate(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "V"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "rain"}
    turns = [
        *ASKED,
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    system = [{"type": "text", "text": "Briefly."}]
    ask(client, system=system, messages=turns, stop_sequences=["x"], tools=[WEATHER])
    first, _, called, answered, last = messages(gateway)
    assert first == {"role": "system", "content": "Briefly."}
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "V"}}
    assert (answered["role"], answered["content"]) == ("tool", "rain")
    assert last == {"role": "user", "content": "And?"}
    assert gateway.models.asked[-1]["stop_words"] == ["x"]
    assert json.loads(gateway.models.asked[-1]["tools"])[0]["function"]["name"] == "weather"
    turns[2] = {"role": "user", "content": [{**result, "is_error": True}]}
    ask(client, messages=turns)
    assert messages(gateway)[-1]["content"] == "Error: rain"
    for block, said in (({**result, "tool_use_id": "t2"}, "'t2'"), ({"type": "tool_result"}, "id")):
        turns[2] = {"role": "user", "content": [block]}
        with pytest.raises(anthropic.BadRequestError, match=said):
            ask(client, messages=turns)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "'thinking' is not offered"),
        ({"tools": [{"type": "web_search_20250305", "name": "x"}]}, "no tool of the client's own"),
        ({"output_config": {"effort": "low"}}, "output_config.effort is not offered"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "of type 'image': blocks are text, document",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "document",
                                "source": {"type": "text", "data": "x"},
                                "citations": {"enabled": True},
                            }
                        ],
                    }
                ]
            },
            "invents none: leave citations out",
        ),
    ],
)
def test_what_is_not_offered_is_refused_in_anthropic_s_shape(
    client: anthropic.Anthropic, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=said) as refused:
        ask(client, extra_body=fields)
    body: Any = refused.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")


def test_errors_of_generate_have_anthropic_s_kinds(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.models.failure = Busy("512 requests wait")
    with pytest.raises(anthropic.APIStatusError, match="512 requests wait") as refused:
        ask(client)
    assert (refused.value.status_code, refused.value.type) == (503, "overloaded_error")
    with pytest.raises(anthropic.NotFoundError):
        ask(client, model="claude")
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_every_field_of_anthropic_s_client_has_a_place() -> None:
    kinds = anthropic.types.message_create_params.MessageCreateParamsBase
    known = {*FIELDS, *OTHERS}
    # The two are headers.
    assert set(kinds.__annotations__) - {"user_profile_id", "workspace_id"} <= known
    counted = anthropic.types.MessageCountTokensParams
    known -= {"max_tokens", "stream"}
    assert set(counted.__annotations__) - {"user_profile_id", "workspace_id"} <= known


@pytest.mark.parametrize(
    "arguments", ['{"city": 1e999}', "{[1]: 2, ", "{1: 2, }", "not json", "[1]"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_arguments_are_a_text_but_no_json_object_is_text(
    client: anthropic.Anthropic, gateway: RunningGateway, arguments: str, stream: bool
) -> None:
    call = {"name": "weather", "arguments": arguments}
    written = f"<tool_call>{json.dumps(call)}</tool_call>"
    gateway.models.pieces = [written]
    asked: Any = {"model": "tiny", "max_tokens": 9, "messages": ASKED, "tools": [WEATHER]}
    if stream:
        with client.messages.stream(**asked) as events:
            (block,) = events.get_final_message().content
    else:
        (block,) = client.messages.create(**asked).content
    assert (block.type, block.text) == ("text", written)


@pytest.mark.parametrize(
    ("written", "members"),
    [
        ('{"city": "Vellin", "days": 12', {"city": "Vellin"}),
        ('{"city": "Vellin", "days": 12,', {"city": "Vellin", "days": 12}),
        ('{"city": "Vel', {}),
        ('{"at": {"x": [1]}, "city"', {"at": {"x": [1]}}),
        ("{", {}),
    ],
)
def test_a_call_that_the_answer_s_end_cuts_has_the_members_that_are_whole(
    client: anthropic.Anthropic, gateway: RunningGateway, written: str, members: object
) -> None:
    gateway.models.pieces = [f'<tool_call>{{"name": "weather", "arguments": {written}']
    gateway.models.finish_reason = "length"
    tools: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
    answer = ask(client, tools=tools)
    assert [(block.type, block.input) for block in answer.content] == [("tool_use", members)]
    assert answer.stop_reason == "max_tokens"
    choice = (
        gateway.openai()
        .chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Who?"}],
            tools=[{"type": "function", "function": {"name": "weather"}}],
        )
        .choices[0]
    )
    (call,) = choice.message.tool_calls or ()
    assert (call.function.arguments, choice.finish_reason) == (written, "length")

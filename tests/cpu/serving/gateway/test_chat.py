"""Chats and completions: what becomes of a client's fields, and what the client gets back."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from document_world import Store
from gateway_world import COUNTS, FORMS, RunningGateway, running_gateway

from legokv.errors import ApiRefused, Busy, InvalidRequest, TimedOut
from legokv.serving.api_keys import add_key
from legokv.serving.gateway import library
from legokv.serving.gateway.chat import Asked, begin
from legokv.serving.gateway.fields import ASKS_FOR_NOTHING, CHAT, COMPLETION, WITHOUT_EFFECT
from legokv.serving.gateway.keys import Accounts, KeyAccount
from legokv.serving.gateway.replies import usage_of
from legokv.serving.gateway.tool_reading import ToolForm
from legokv.serving.gateway.turns import check_call_ids

ASKED = [{"role": "user", "content": "Who keeps it?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TOKEN = {"token_id": 5, "token": "Or", "text": "Or", "bytes": [79, 114], "log_prob": -0.5}
LOG_PROBS = json.dumps([{**TOKEN, "top": [TOKEN]}])


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path, ToolForm.HERMES, max_documents=3) as one:
        yield one


@pytest.fixture
def client(gateway: RunningGateway) -> openai.OpenAI:
    return gateway.openai()


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": ASKED, **fields})


def messages(gateway: RunningGateway) -> Any:
    return json.loads(gateway.models.asked[-1]["messages"])


def test_usage_has_all_that_generate_says_and_openai_has_no_place_for() -> None:
    elsewhere = {"text_output", "sequence_index", "finish_reason", "generated_tokens"}
    elsewhere |= {"prompt_tokens", "request_id"}
    elsewhere |= {"token_log_probs", "output_log_probs", "cum_log_probs"}
    outputs = {**dict.fromkeys(FORMS["generate"].outputs, 1), "head": "own"}
    assert {*usage_of(outputs)["legokv"]} == {*outputs} - elsewhere
    assert {"head", "reused_tokens", "total_seconds"} < {*outputs} - elsewhere


def test_an_answer_comes_with_its_counts_and_ours_beside_them(client: openai.OpenAI) -> None:
    answer = chat(client)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Orrin keeps it.", "stop")
    assert choice.message.tool_calls is None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 7, 107)
    assert usage.prompt_tokens_details.cached_tokens == COUNTS["cached_tokens"]
    assert usage.prompt_tokens_details.cache_write_tokens == COUNTS["compiled_tokens"]
    assert usage.legokv["recomputed_tokens"] == 5
    assert (usage.legokv["reused_tokens"], usage.legokv["head"]) == (4, "own")
    assert usage.legokv["time_to_first_token_seconds"] == 0.25


def test_a_stream_is_the_same_answer_in_pieces_and_ends_with_its_counts(
    client: openai.OpenAI,
) -> None:
    stream = chat(client, stream=True, n=2, stream_options={"include_usage": True})
    chunks = list(stream)
    for index in range(2):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == "Orrin keeps it."
        assert [c.finish_reason for c in mine] == [None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 114
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_being_asked_a_stream_has_no_counts(client: openai.OpenAI) -> None:
    assert all(chunk.usage is None and chunk.choices for chunk in chat(client, stream=True))


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 9, "max_completion_tokens": 8}, {"max_tokens": 8}),
        ({}, {"temperature": 1.0}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"n": 3}, {"num_return_sequences": 3}),
        ({"stop": "x"}, {"stop_words": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_words": ["x", "y"]}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"logprobs": True, "top_logprobs": 2}, {"return_log_probs": True, "num_top_log_probs": 2}),
        ({"extra_body": {"top_k": 5, "min_p": 0.5}}, {"top_k": 5, "min_p": 0.5}),
        ({"extra_body": {"top_k": -1}}, {"temperature": 1.0}),
        ({"extra_body": {"repetition_penalty": 1.5}}, {"repetition_penalty": 1.5}),
        ({"extra_body": {"min_tokens": 3}}, {"min_tokens": 3}),
        ({"extra_body": {"stop_token_ids": [1, 2]}}, {"stop_token_ids": [1, 2]}),
        ({"extra_body": {"link": {"mode": "full"}}}, {"mode": "full"}),
        ({"extra_body": {"link": {"link_tokens": 4}}}, {"link_tokens": 4}),
        ({"extra_body": {"chat_template_kwargs": {"a": 1}}}, {"chat_template_kwargs": '{"a":1}'}),
        ({"user": "me", "metadata": {"a": "b"}, "store": False}, {"temperature": 1.0}),
        ({"top_p": None, "stop": None}, {"temperature": 1.0}),
    ],
)
def test_fields_reach_generate_by_its_names(
    client: openai.OpenAI, gateway: RunningGateway, fields: dict[str, Any], asked: dict[str, Any]
) -> None:
    chat(client, **fields)
    (sent,) = gateway.models.asked
    usual = {"namespace": "default", "temperature": 1.0}
    assert {name: value for name, value in sent.items() if name != "messages"} == {**usual, **asked}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"colour": 1}, "colour", "unknown field 'colour'"),
        ({"store": True}, "store", "'store' is not offered"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "'reasoning_effort' is not offered"),
        ({"cache_salt": "a"}, "cache_salt", "'cache_salt' is not offered"),
        ({"n": 129}, "n", "'n' is 129, outside 1 to 128"),
        ({"max_tokens": 0}, "max_tokens", "'max_tokens' is 0, outside 1"),
        ({"temperature": "hot"}, "temperature", "'temperature' is a number, not a text"),
        ({"temperature": 1e30}, "temperature", "outside 0 to 100"),
        ({"temperature": -1}, "temperature", "outside 0 to 100"),
        ({"temperature": 0.001}, "temperature", "temperature above 0 is 0.01 to 100, not 0.001"),
        ({"top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
        ({"stream_options": {}}, "stream_options", "needs 'stream'"),
        ({"link": {"mode": "x"}}, "link", "'mode' is one of"),
        ({"link": {"pages": 1}}, "link", "unknown field 'pages'"),
        ({"messages": []}, "messages", "'messages' is empty"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "not 'king'"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "a list of parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "of type 'image_url': parts are 'text' and 'file' here",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file_id": "file-1"}]}]},
            "messages[0].content[0]",
            "has 'file', an object with a 'file_id'",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"function": {"name": "f", "arguments": '{"a":' + "[" * 50_000}}
                        ],
                    }
                ]
            },
            None,
            "objects and lists inside one another, at most 32 fit",
        ),
        ({"documents": [{"title": "x"}]}, "documents[0]", "an object with a 'text'"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(
    client: openai.OpenAI,
    gateway: RunningGateway,
    fields: dict[str, Any],
    param: str | None,
    said: str,
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        client.post(
            "/chat/completions", body={"model": "tiny", "messages": ASKED, **fields}, cast_to=object
        )
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert gateway.models.asked == []


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt' here, only 'tiny'") as no:
        chat(client, model="gpt")
    assert no.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"


def test_files_stand_where_a_message_has_them(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    first = client.files.create(file=("a.txt", b"First."), purpose="user_data").id
    data = "data:text/plain;base64," + base64.b64encode(b"Second.").decode()
    parts = [
        {"type": "text", "text": "Compare "},
        {"type": "file", "file": {"file_id": first}},
        {"type": "text", "text": " with "},
        {"type": "file", "file": {"file_data": data, "filename": "b.txt"}},
    ]
    chat(client, messages=[{"role": "user", "content": parts}])
    (message,) = messages(gateway)
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["text", "document", "text", "document"]
    assert message["content"][1]["id"] == first.replace("file-", "doc-")
    ids = [part["id"] for part in message["content"] if part["type"] == "document"]
    texts = [gateway.models.service.reply({"operation": "get", "id": i, "text": True}) for i in ids]
    assert [reply["text"] for reply in texts] == ["First.", "Second."]
    assert [file.id for file in client.files.list()] == [first]
    assert texts[1]["document"]["expires_at"] is not None


def test_documents_of_the_body_come_first_in_the_first_message_of_a_user(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    turns = [{"role": "system", "content": "Briefly."}, *ASKED]
    documents = [{"title": "One", "text": "First."}, {"text": "Second."}]
    chat(client, messages=turns, extra_body={"documents": documents})
    system, user = messages(gateway)
    assert system["content"] == "Briefly."
    assert [part["type"] for part in user["content"]] == ["document", "document", "text"]
    reply = gateway.models.service.reply(
        {"operation": "get", "id": user["content"][0]["id"], "text": True}
    )
    assert reply["text"] == "One\nFirst."


def test_a_title_keeps_its_slashes_and_a_filename_loses_its_folders(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    data = base64.b64encode(b"Second.").decode()
    file = {"type": "file", "file": {"file_data": data, "filename": "/home/me/b.txt"}}
    documents = [{"title": "Terms 2025/26", "text": "First."}]
    asked: Any = [{"role": "user", "content": [file]}]
    chat(client, messages=asked, extra_body={"documents": documents})
    (message,) = messages(gateway)
    service = gateway.models.service
    parts = [service.reply({"operation": "get", "id": part["id"]}) for part in message["content"]]
    names = [part["document"]["name"] for part in parts]
    assert names == ["inline/Terms 2025/26", "inline/b.txt"]


def test_a_file_that_was_asked_about_a_moment_ago_costs_no_question_more(
    client: openai.OpenAI, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = client.files.create(file=("a.txt", b"First."), purpose="user_data").id
    turns = [{"role": "user", "content": [{"type": "file", "file": {"file_id": file}}]}]
    chat(client, messages=turns, extra_body={"documents": [{"text": "Second."}]})
    operations: list[str] = []
    reply = gateway.models.service.reply

    def counted(body: Any) -> Any:
        operations.append(body["operation"])
        return reply(body)

    monkeypatch.setattr(gateway.models.service, "reply", counted)
    chat(client, messages=turns, extra_body={"documents": [{"text": "Second."}]})
    assert operations == ["get", "get"], "those are the model's own"


def test_a_text_that_was_deleted_meanwhile_is_registered_again(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    chat(client, extra_body={"documents": [{"text": "Second."}]})
    part = messages(gateway)[0]["content"][0]
    gateway.models.service.reply({"operation": "delete", "id": part["id"]})
    chat(client, extra_body={"documents": [{"text": "Second."}]})
    assert gateway.models.service.reply({"operation": "get", "id": part["id"]})


def test_a_text_whose_client_left_meanwhile_has_its_name_and_its_end_all_the_same(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    reply = gateway.models.service.reply

    def held(body: Any) -> Any:
        begun.set()
        may_go_on.wait(60)
        return reply(body)

    monkeypatch.setattr(gateway.models.service, "reply", held)
    account: Any = SimpleNamespace(namespace=lambda: "default", stored_bytes=0)

    async def left() -> None:
        texts = library.Library(gateway.world.models)
        asking = asyncio.create_task(texts.of_text(account, "Left alone.", "a.txt"))
        await asyncio.to_thread(begun.wait, 60)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        may_go_on.set()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    asyncio.run(left())
    (document,) = reply({"operation": "list"})["documents"]
    assert document["name"] == "inline/a.txt"
    assert document["expires_at"] is not None


def test_an_unknown_file_and_too_many_of_them_are_told(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    part = {"type": "file", "file": {"file_id": "file-" + "0" * 24}}
    with pytest.raises(openai.NotFoundError, match="no file 'file-000000000000000000000000'"):
        chat(client, messages=[{"role": "user", "content": [part]}])
    documents = [{"text": str(n)} for n in range(4)]
    with pytest.raises(openai.BadRequestError, match="4 files are in the messages, at most 3"):
        chat(client, extra_body={"documents": documents})
    parts = [{"type": "file", "file": {"file_data": "data:text/plain,a"}}] * 3
    asked: Any = [{"role": "user", "content": parts[:2]}, {"role": "user", "content": parts[2:]}]
    with pytest.raises(openai.BadRequestError, match="4 files are in the messages, at most 3"):
        chat(client, messages=asked, extra_body={"documents": documents[:1]})
    assert gateway.models.service.reply({"operation": "list"})["documents"] == []


def test_a_file_that_failed_to_compile_is_a_conflict(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    gateway.store.failure = InvalidRequest("it does not fit")
    file = client.files.create(file=("a.txt", b"First."), purpose="user_data").id
    assert client.files.wait_for_processing(file, poll_interval=0.02).status == "error"
    assert client.files.retrieve(file).status_details == "it does not fit"
    part = {"type": "file", "file": {"file_id": file}}
    with pytest.raises(openai.ConflictError, match="could not be compiled: it does not fit"):
        chat(client, messages=[{"role": "user", "content": [part]}])


def test_a_file_that_is_not_ready_in_time_is_a_conflict_and_is_asked_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_compile, compile_now = threading.Event(), Store.compile

    def compile_when_told(store: Store, *asked: Any) -> Any:
        may_compile.wait(30)
        return compile_now(store, *asked)

    monkeypatch.setattr(Store, "compile", compile_when_told)
    monkeypatch.setattr(library, "WAIT_SECONDS", 0.05)
    with running_gateway(tmp_path) as gateway:
        client = gateway.openai()
        file = client.files.create(file=("a.txt", b"First."), purpose="user_data").id
        asked = [{"role": "user", "content": [{"type": "file", "file": {"file_id": file}}]}]
        with pytest.raises(openai.ConflictError, match=r"not compiled within 0\.05 s") as refused:
            chat(client, messages=asked)
        assert refused.value.code == "file_not_ready"
        may_compile.set()
        assert client.files.wait_for_processing(file, poll_interval=0.02).status == "processed"
        assert chat(client, messages=asked).choices[0].message.content == "Orrin keeps it."


def test_probabilities_come_with_bytes(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.models.log_probs = LOG_PROBS
    (choice,) = chat(client, logprobs=True, top_logprobs=1).choices
    (token,) = choice.logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("Or", -0.5, [79, 114])
    assert [other.token for other in token.top_logprobs] == ["Or"]
    chunks = list(chat(client, logprobs=True, stream=True))
    assert [len(c.choices[0].logprobs.content) for c in chunks if c.choices[0].logprobs] == [1, 1]
    old = client.completions.create(model="tiny", prompt="The", logprobs=1).choices[0].logprobs
    assert (old.tokens, old.token_logprobs, old.text_offset) == (["Or"], [-0.5], [0])


def test_a_completion_goes_on_with_the_text_as_it_is(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    answer = client.completions.create(model="tiny", prompt=" The oldest ", max_tokens=4)
    assert answer.choices[0].text == "Orrin keeps it."
    assert gateway.models.asked[-1]["text_input"] == " The oldest "
    assert gateway.models.asked[-1]["apply_chat_template"] is False
    stream = client.completions.create(model="tiny", prompt="The", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Orrin keeps it."
    for prompt in (["a", "b"], [1, 2], None):
        with pytest.raises(openai.BadRequestError, match=r"'prompt' is .*one text"):
            client.post("/completions", body={"model": "tiny", "prompt": prompt}, cast_to=object)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_in_an_answer_is_a_call_of_the_message(
    client: openai.OpenAI, gateway: RunningGateway, stream: bool
) -> None:
    gateway.models.pieces = [
        "<tool_",
        'call>{"name": "weather", ',
        '"arguments": {"city": "V"}}</tool_call>',
    ]
    answer = chat(client, tools=[WEATHER], stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        (part,) = [call for c in choices for call in c.delta.tool_calls or ()]
        assert not any(c.delta.content for c in choices)
        function, reason = part.function, choices[-1].finish_reason
    else:
        (choice,) = answer.choices
        assert choice.message.content is None
        function, reason = choice.message.tool_calls[0].function, choice.finish_reason
    assert (function.name, json.loads(function.arguments)) == ("weather", {"city": "V"})
    assert reason == "tool_calls"
    assert json.loads(gateway.models.asked[-1]["tools"]) == [WEATHER]


def test_earlier_calls_and_their_results_reach_the_template(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    call = {"id": "a1", "type": "function", "function": {"name": "w", "arguments": '{"x": 1}'}}
    turns = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a1", "content": "rain"},
    ]
    chat(client, messages=turns, tools=[WEATHER])
    _, asked, answered = messages(gateway)
    assert asked["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert (answered["role"], answered["tool_call_id"]) == ("tool", "a1")


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (Busy("512 requests wait"), 503, "server_error"),
        (InvalidRequest("the prompt is too long"), 400, "invalid_request_error"),
        (RuntimeError("secret"), 500, "server_error"),
    ],
)
def test_what_generate_ends_with_has_its_status(
    client: openai.OpenAI, gateway: RunningGateway, failure: Any, status: int, kind: str
) -> None:
    gateway.models.failure = failure
    with pytest.raises(openai.APIStatusError) as refused:
        chat(client, stream=True)
    assert (refused.value.status_code, refused.value.type) == (status, kind)
    assert "secret" not in str(refused.value)


def test_an_error_in_the_midst_of_a_stream_is_its_last_event(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    gateway.models.failure, gateway.models.fails_after = Busy("the engine was lost"), 1
    stream = chat(client, stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError, match="the engine was lost"):
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)


def test_every_field_of_openai_s_client_has_a_place() -> None:
    kinds = openai.types.chat.completion_create_params.CompletionCreateParamsBase
    known = {*CHAT, *WITHOUT_EFFECT, *ASKS_FOR_NOTHING}
    assert set(kinds.__annotations__) - {"moderation"} <= known
    old = openai.types.completion_create_params.CompletionCreateParamsBase
    assert set(old.__annotations__) <= {*COMPLETION, *WITHOUT_EFFECT, *ASKS_FOR_NOTHING}


def test_a_load_test_s_answers_have_the_length_that_they_ask_for(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    asked: Any = {"model": "tiny", "messages": ASKED, "extra_body": {"ignore_eos": True}}
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        **asked, max_tokens=9, stream=True, stream_options=options
    )
    assert [chunk.usage is not None for chunk in stream][-1]
    sent = gateway.models.asked[-1]
    assert (sent["min_tokens"], sent["max_tokens"]) == (9, 9)
    with pytest.raises(openai.BadRequestError, match="'ignore_eos' needs 'max_tokens'"):
        client.chat.completions.create(**asked)


def test_a_time_out_is_generate_s_and_an_answer_that_was_cut_has_its_length(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    asked: Any = {"model": "tiny", "messages": ASKED}
    gateway.models.finish_reason = "timeout"
    answer = client.chat.completions.create(**asked, extra_body={"timeout": 1.5})
    assert answer.choices[0].finish_reason == "length"
    assert gateway.models.asked[-1]["timeout_seconds"] == 1.5
    gateway.models.failure = TimedOut("no token within timeout_seconds 1.5")
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(**asked, extra_body={"timeout": 1.5})
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"] == "2"
    with pytest.raises(openai.BadRequestError, match="'timeout' is above 0 and at most 604800"):
        client.chat.completions.create(**asked, extra_body={"timeout": 0})


class Told:
    """A model `generate` that counts 100 tokens of a prompt, and replies what it is told."""

    def __init__(self, *replies: Any) -> None:
        self._replies = replies

    async def generate(
        self, asked: dict[str, Any], request_id: str, names: Any = None
    ) -> AsyncGenerator[Any, None]:
        for reply in ({"prompt_tokens": 100},) if "count_only" in asked else self._replies:
            if isinstance(reply, Exception):
                raise reply
            if reply is None:
                await asyncio.Event().wait()
            yield reply


async def replies_of(account: KeyAccount, *told: Any) -> list[Any]:
    """What comes of an answer of up to 80 tokens, in a context of 150."""
    world: Any = SimpleNamespace(
        models=Told(*told),
        facts=SimpleNamespace(model=SimpleNamespace(context_len=150)),
        settings=SimpleNamespace(default_max_tokens=80),
    )
    request: Any = SimpleNamespace(state=SimpleNamespace(request_id="r"))

    async def ask() -> Asked:
        return Asked({"stream": True})

    begun = await begin(world, request, account, ask)
    return [values async for values in begun.all()]


@pytest.fixture(name="account")
def account_fixture(tmp_path: Path) -> KeyAccount:
    key, _ = add_key(tmp_path / "keys.json", "a", {"tokens_per_minute": 600})
    return Accounts(tmp_path / "keys.json", lambda: 0.0).of([key])


def num_left(account: KeyAccount) -> int:
    assert account.tokens is not None
    return 601 - round(account.tokens.take(601) * 600 / 60)


LAST = {"finish_reason": "stop", "prompt_tokens": 100, "generated_tokens": 7}
PIECE = {"text_output": "Orrin"}


@pytest.mark.parametrize("told", [(None,), (PIECE, None)])
def test_a_client_that_leaves_gets_no_tokens_back(account: KeyAccount, told: Any) -> None:
    async def leave() -> None:
        asking = asyncio.create_task(replies_of(account, *told))
        for _ in range(20):
            await asyncio.sleep(0)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    asyncio.run(leave())
    # No answer is longer than the context has room behind the prompt.
    assert num_left(account) == 600 - 150


@pytest.mark.parametrize(
    ("told", "used"),
    [
        ((PIECE, LAST), 107),
        ((Busy("512 requests wait"),), 0),
        ((RuntimeError("a fault"),), 0),
        ((PIECE, PIECE, Busy("the engine was lost")), 102),
        ((PIECE, RuntimeError("a fault")), 101),
    ],
)
def test_what_an_answer_did_not_use_is_given_back_also_when_it_fails(
    account: KeyAccount, told: Any, used: int
) -> None:
    with suppress(Busy, RuntimeError):
        asyncio.run(replies_of(account, *told))
    assert num_left(account) == 600 - used


def test_a_result_of_no_call_names_the_last_calls_before_it() -> None:
    calls = {"role": "assistant", "tool_calls": [{"id": f"call-{n}"} for n in range(10)]}
    result = {"role": "tool", "tool_call_id": "call-7"}
    check_call_ids([calls, result, {**calls, "tool_calls": [{"id": "call-0"}]}])
    with pytest.raises(ApiRefused) as refused:
        check_call_ids([calls, {**result, "tool_call_id": "call-x"}])
    shown = ", ".join(f"'call-{n}'" for n in range(2, 10))
    assert str(refused.value) == (
        "the messages have the result of a call 'call-x' that no message before it makes; calls "
        f"before it: 10, the last 8 of them {shown}"
    )


def test_many_calls_and_results_are_checked_in_time_that_grows_with_their_number() -> None:
    calls = [{"id": f"call-{n}"} for n in range(20_000)]
    results = [{"role": "tool", "tool_call_id": call["id"]} for call in calls]
    started = time.process_time()
    check_call_ids([{"role": "assistant", "tool_calls": calls}, *reversed(results)])
    assert time.process_time() - started < 1

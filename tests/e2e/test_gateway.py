"""The official clients against a real server: files, chats, streams, leaving, time-outs."""

import asyncio
import time
from typing import Any

import anthropic
import openai
import pytest
from scrape import scrape
from server import RunningServer

SECONDS = 30
MODEL = "llama"
TEXTS = (
    "The gateway of Vellin is kept by Orrin, who has two keys. " * 4,
    "The second key of Vellin opens the boat house at the ferry. " * 4,
)
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 12}
# Anthropic's client has no name for it any more.
ANTHROPIC: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.api}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def files(client: openai.OpenAI) -> list[str]:
    """Ids of TEXTS, processed."""
    made = [
        client.files.create(file=(f"{number}.txt", text.encode()), purpose="user_data").id
        for number, text in enumerate(TEXTS)
    ]
    for file in made:
        assert client.files.wait_for_processing(file, poll_interval=0.05).status == "processed"
    return made


def turns(files: list[str], question: str = "Who has the keys?") -> list[Any]:
    parts = [{"type": "file", "file": {"file_id": file}} for file in files]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_a_chat_over_files_is_answered_as_generate_answers_it(
    server: RunningServer, client: openai.OpenAI, files: list[str]
) -> None:
    answer = client.chat.completions.create(messages=turns(files), **GREEDY)
    ids = [file.replace("file-", "doc-") for file in files]
    asked = {"document_ids": ids, "text_input": "Who has the keys?", "max_tokens": 12}
    reply = server.ask(temperature=0.0, **asked)
    assert answer.choices[0].message.content == reply["text_output"]
    assert answer.usage.prompt_tokens == reply["prompt_tokens"]
    assert answer.usage.prompt_tokens_details.cached_tokens > 0
    assert answer.usage.legokv["documents_linked"] == 2


def test_clients_in_one_loop_stream_the_same_answers(
    server: RunningServer, client: openai.OpenAI, files: list[str]
) -> None:
    whole = client.chat.completions.create(messages=turns(files), **GREEDY)

    async def text() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.api}/v1", api_key="none") as other:
            stream = await other.chat.completions.create(
                messages=turns(files), stream=True, **GREEDY
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def texts() -> list[str]:
        return await asyncio.gather(*(text() for _ in range(4)))

    assert asyncio.run(texts()) == [whole.choices[0].message.content] * 4


def test_anthropic_s_client_gets_the_same_answer_whole_and_in_events(
    server: RunningServer, client: openai.OpenAI, files: list[str]
) -> None:
    whole = client.chat.completions.create(messages=turns(files), **GREEDY)
    blocks: list[Any] = [
        {"type": "document", "source": {"type": "file", "file_id": file}} for file in files
    ]
    asked = [{"role": "user", "content": [*blocks, {"type": "text", "text": "Who has the keys?"}]}]
    with anthropic.Anthropic(base_url=server.api, api_key="none") as other:
        message = other.messages.create(messages=asked, **ANTHROPIC)
        with other.messages.stream(messages=asked, **ANTHROPIC) as stream:
            pieces = list(stream.text_stream)

    async def text() -> str:
        async with anthropic.AsyncAnthropic(base_url=server.api, api_key="none") as third:
            return (await third.messages.create(messages=asked, **ANTHROPIC)).content[0].text

    assert message.content[0].text == whole.choices[0].message.content
    assert "".join(pieces) == message.content[0].text == asyncio.run(text())
    usage = message.usage
    parts = (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens)
    assert sum(parts) == whole.usage.prompt_tokens


def test_a_client_whose_time_is_over_leaves_nothing_running(
    server: RunningServer, client: openai.OpenAI, files: list[str]
) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(
            **{**GREEDY, "max_tokens": 1500}, messages=turns(files), timeout=0.3
        )
    stream = client.chat.completions.create(
        **{**GREEDY, "max_tokens": 1500}, messages=turns(files), stream=True
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + SECONDS
    while scrape(server)("legokv_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert scrape(server)("legokv_requests_running") == 0


def test_refusals_of_the_models_come_through_with_their_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.chat.completions.create(messages=turns([], "word " * 3000), **GREEDY)
    unknown = "file-" + "0" * 24
    with pytest.raises(openai.NotFoundError, match=f"no file '{unknown}'"):
        client.chat.completions.create(messages=turns([unknown]), **GREEDY)
    tool = {"type": "function", "function": {"name": "w"}}
    with pytest.raises(openai.BadRequestError, match="no place for tools"):
        client.chat.completions.create(messages=turns([]), tools=[tool], **GREEDY)


def test_a_text_goes_on_without_a_template(server: RunningServer, client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="The ferry of", logprobs=1, **GREEDY)
    asked = {"text_input": "The ferry of", "apply_chat_template": False, "max_tokens": 12}
    assert answer.choices[0].text == server.ask(temperature=0.0, **asked)["text_output"]
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text


def test_tokens_and_figures_are_shown(server: RunningServer) -> None:
    with openai.OpenAI(base_url=server.api, api_key="none") as plain:
        tokens = plain.post("/tokenize", body={"prompt": TEXTS[0]}, cast_to=object)
        assert tokens["count"] == len(tokens["tokens"]) > 10
        text = plain.post("/detokenize", body={"tokens": tokens["tokens"]}, cast_to=object)
        assert text["prompt"] == TEXTS[0]
        assert b"legokv_requests_running" in plain.get("/metrics", cast_to=bytes)
        assert plain.get("/ready", cast_to=object) == {"status": "ready"}

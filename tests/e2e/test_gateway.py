"""The official clients against a real server: files, chats, streams, leaving, time-outs."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anthropic
import openai
import pytest
from clients import WAYS
from scrape import at_rest
from server import RunningServer

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


def message(files: list[str], max_tokens: int) -> dict[str, Any]:
    """The same for Anthropic's client."""
    blocks: list[Any] = [
        {"type": "document", "source": {"type": "file", "file_id": file}} for file in files
    ]
    content = [*blocks, {"type": "text", "text": "Who has the keys?"}]
    return {
        **ANTHROPIC,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": content}],
    }


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
    before = at_rest(server)
    long = {**GREEDY, "max_tokens": 1500, "extra_body": {"min_tokens": 1500}}
    # Anthropic's API has no `min_tokens`: a text of so many characters is as long.
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 4000}}}
    form = {"type": "json_schema", "schema": {**schema, "required": ["a"]}}
    body = {"extra_body": {"temperature": 0, "output_config": {"format": form}}}
    by_way = {
        "openai": {**long, "messages": turns(files)},
        "anthropic": {**message(files, 1500), **body},
    }
    for ask in WAYS:
        question = next(asked for name, asked in by_way.items() if name in ask.__name__)
        with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
            ask(server.api, "none", question=question, max_retries=0, timeout=0.3)
    stream = client.chat.completions.create(**long, messages=turns(files), stream=True)
    next(iter(stream))
    stream.close()
    grown = at_rest(server).since(before)
    assert grown("legokv_generated_tokens_total") < 5 * 1500 / 2


def test_a_connection_that_is_reset_is_tried_again_and_answered(server: RunningServer) -> None:
    for ask in WAYS:
        with resetting(server.api, num_resets=2) as address:
            assert ask(address, "none", max_retries=4) == 2, ask.__name__


@contextmanager
def resetting(api: str, num_resets: int) -> Iterator[str]:
    """Another address of the server, which resets the first connections after their request."""
    host, _, port = api.removeprefix("http://").rpartition(":")
    left = num_resets

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while part := await reader.read(2**16):
                writer.write(part)
                await writer.drain()
        writer.close()

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        if left:
            left -= 1
            await reader.read(1)
            writer.transport.abort()
            return
        there = await asyncio.open_connection(host, int(port))
        await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))

    loop = asyncio.new_event_loop()
    opened = loop.run_until_complete(asyncio.start_server(taken, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{opened.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        opened.close()
        loop.close()


def test_refusals_of_the_models_come_through_with_their_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.chat.completions.create(messages=turns([], "word " * 3000), **GREEDY)
    unknown = "file-" + "0" * 24
    with pytest.raises(openai.NotFoundError, match=f"no file '{unknown}'"):
        client.chat.completions.create(messages=turns([unknown]), **GREEDY)
    tool = {"type": "function", "function": {"name": "w"}}
    with pytest.raises(openai.BadRequestError, match="no place for tools"):
        client.chat.completions.create(messages=turns([]), tools=[tool], **GREEDY)


def test_a_chat_by_rankings_is_answered_over_ranked_files_and_names_the_others(
    server: RunningServer, client: openai.OpenAI
) -> None:
    texts = [f"The {name} of Vellin is kept by two brothers. " * 4 for name in ("mill", "quay")]
    ranked = [i.replace("doc-", "file-") for i in server.register(*texts, rank=True)]
    (other,) = server.register("The well of Vellin is kept by nobody. " * 4, rank=False)
    by_rank: Any = {"link": {"mode": "ranked", "link_tokens": 4}}
    answer = client.chat.completions.create(messages=turns(ranked), **GREEDY, extra_body=by_rank)
    assert answer.usage.legokv["recomputed_tokens"] > 0
    missing = other.replace("doc-", "file-")
    told = f"needs a ranking of each document, and 1 of 3 have none: {missing}. Register them again"
    with pytest.raises(openai.BadRequestError, match=told):
        client.chat.completions.create(
            messages=turns([*ranked, missing]), **GREEDY, extra_body=by_rank
        )


def test_a_text_goes_on_without_a_template(server: RunningServer, client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="The ferry of", logprobs=1, **GREEDY)
    asked = {"text_input": "The ferry of", "apply_chat_template": False, "max_tokens": 12}
    assert answer.choices[0].text == server.ask(temperature=0.0, **asked)["text_output"]
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text


def test_anthropic_s_client_counts_a_message_s_tokens_as_they_are_computed(
    server: RunningServer, files: list[str]
) -> None:
    blocks: list[Any] = [
        {"type": "document", "source": {"type": "file", "file_id": file}} for file in files
    ]
    text = {"type": "text", "media_type": "text/plain", "data": "Of a chat alone."}
    blocks.append({"type": "document", "source": text, "title": "Inline"})
    asked = [{"role": "user", "content": [*blocks, {"type": "text", "text": "Who has the keys?"}]}]
    said: dict[str, Any] = {"messages": asked, "system": "Be brief."}
    with anthropic.Anthropic(base_url=server.api, api_key="none") as other:
        counted = other.messages.count_tokens(model=MODEL, **said).input_tokens
        usage = other.messages.create(**said, **ANTHROPIC).usage
    parts = (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens)
    assert counted == sum(parts)


def test_tokens_and_figures_are_shown(server: RunningServer) -> None:
    with openai.OpenAI(base_url=server.api, api_key="none") as plain:
        tokens = plain.post("/tokenize", body={"prompt": TEXTS[0]}, cast_to=object)
        assert tokens["count"] == len(tokens["tokens"]) > 10
        text = plain.post("/detokenize", body={"tokens": tokens["tokens"]}, cast_to=object)
        assert text["prompt"] == TEXTS[0]
        assert b"legokv_requests_running" in plain.get("/metrics", cast_to=bytes)
        assert plain.get("/ready", cast_to=object) == {"status": "ready"}

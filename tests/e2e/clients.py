"""The official clients, synchronous and asynchronous, as four ways to ask one short question."""

import asyncio
from collections.abc import Callable
from typing import Any

import anthropic
import openai

ASKED: list[Any] = [{"role": "user", "content": "Who keeps it?"}]
# Greedily: a draw may end sooner.
QUESTION: dict[str, Any] = {
    "model": "llama",
    "messages": ASKED,
    "max_tokens": 4,
    "extra_body": {"temperature": 0},
}

Asked = dict[str, Any] | None
Ask = Callable[..., int]
"""`ask(address, key, **options)` by a client with these options: how often it tried again."""


def by_openai(address: str, key: str, question: Asked = None, **options: Any) -> int:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, **options) as client:
        raw = client.chat.completions.with_raw_response.create(**{**QUESTION, **(question or {})})
        assert raw.parse().usage.completion_tokens == 4
        return raw.retries_taken


def by_openai_in_a_loop(address: str, key: str, question: Asked = None, **options: Any) -> int:
    async def ask() -> int:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key, **options) as client:
            raw = await client.chat.completions.with_raw_response.create(
                **{**QUESTION, **(question or {})}
            )
            assert raw.parse().usage.completion_tokens == 4
            return raw.retries_taken

    return asyncio.run(ask())


def by_anthropic(address: str, key: str, question: Asked = None, **options: Any) -> int:
    with anthropic.Anthropic(base_url=address, api_key=key, **options) as client:
        raw = client.messages.with_raw_response.create(**{**QUESTION, **(question or {})})
        assert raw.parse().usage.output_tokens == 4
        return raw.retries_taken


def by_anthropic_in_a_loop(address: str, key: str, question: Asked = None, **options: Any) -> int:
    async def ask() -> int:
        async with anthropic.AsyncAnthropic(base_url=address, api_key=key, **options) as client:
            raw = await client.messages.with_raw_response.create(**{**QUESTION, **(question or {})})
            assert (await raw.parse()).usage.output_tokens == 4
            return raw.retries_taken

    return asyncio.run(ask())


WAYS: tuple[Ask, ...] = (by_openai, by_openai_in_a_loop, by_anthropic, by_anthropic_in_a_loop)

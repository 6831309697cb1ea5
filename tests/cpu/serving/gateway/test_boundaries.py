"""Two keys at one gateway: nothing that a client sends reaches the other's namespace."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from gateway_world import RunningGateway, running_gateway

from legokv.serving.api_keys import add_key
from legokv.serving.gateway.guard import Rules, guarded
from legokv.serving.gateway.keys import Accounts

TEXT = b"Orrin keeps the lamp of the lighthouse."


@dataclass(frozen=True)
class Keyed:
    """A gateway with keys."""

    gateway: RunningGateway
    keys: dict[str, str]

    def client(self, name: str, key: str | None = None) -> openai.OpenAI:
        return self.gateway.openai().with_options(api_key=key or self.keys[name])

    def upload(self, name: str, data: bytes = TEXT) -> str:
        file = ("a.txt", data)
        return self.client(name).files.create(file=file, purpose="user_data").id


@pytest.fixture(name="keyed")
def keyed_fixture(tmp_path: Path) -> Iterator[Keyed]:
    file = tmp_path / "keys.json"
    rights: dict[str, dict[str, Any]] = {
        "a": {"metrics": True},
        "b": {},
        "few": {"tokens_per_minute": 200},
        "small": {"stored_bytes": 3000},
    }
    keys = {name: add_key(file, name, own)[0] for name, own in rights.items()}
    rules = Rules(Accounts(file), (), 2**20, local=True)
    with running_gateway(tmp_path, wrap=lambda app: guarded(app, rules)) as gateway:
        yield Keyed(gateway, keys)


def chat(client: openai.OpenAI, *files: str, **options: Any) -> Any:
    parts: list[Any] = [{"type": "file", "file": {"file_id": file}} for file in files]
    parts.append({"type": "text", "text": "Who keeps it?"})
    messages: list[Any] = [{"role": "user", "content": parts}]
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def test_a_file_of_another_key_is_not_there_whatever_is_asked_of_it(keyed: Keyed) -> None:
    ours = keyed.upload("a")
    a, b = keyed.client("a"), keyed.client("b")
    for ask in (
        lambda: b.files.retrieve(ours),
        lambda: b.files.content(ours),
        lambda: b.files.delete(ours),
        lambda: chat(b, ours),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert list(b.files.list()) == []
    assert a.files.content(ours).content == TEXT


def test_one_text_of_two_keys_is_two_files(keyed: Keyed) -> None:
    ours, theirs = keyed.upload("a"), keyed.upload("b")
    assert ours != theirs
    keyed.client("b").files.delete(theirs)
    assert [file.id for file in keyed.client("a").files.list()] == [ours]


def test_the_namespace_comes_from_the_key_alone(keyed: Keyed) -> None:
    b = keyed.client("b")
    chat(b)
    assert keyed.gateway.models.asked[-1]["namespace"] == "b"
    for extra in ({"namespace": "a"}, {"link": {"mode": "full", "namespace": "a"}}):
        with pytest.raises(openai.BadRequestError, match="namespace"):
            chat(b, extra_body=extra)
    assert len(keyed.gateway.models.asked) == 1


def test_a_wrong_key_is_401_for_the_clients_of_both_apis(keyed: Keyed) -> None:
    with pytest.raises(openai.AuthenticationError, match="not known here, or was revoked"):
        chat(keyed.client("a", "lk-wrong"))
    client = anthropic.Anthropic(base_url=keyed.gateway.url, api_key="lk-wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError, match="not known here, or was revoked"):
        client.messages.create(
            model="tiny", max_tokens=5, messages=[{"role": "user", "content": "Who?"}]
        )
    assert keyed.gateway.models.asked == []


def test_an_answer_takes_its_tokens_ahead_and_is_settled_by_what_it_used(keyed: Keyed) -> None:
    few = keyed.client("few")
    chat(few, max_tokens=90)  # it used 107 of 190 with its prompt
    with pytest.raises(openai.RateLimitError, match="has 200 tokens a minute") as refused:
        chat(few, max_tokens=5)
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 4
    assert refused.value.code == "rate_limit_exceeded"
    chat(keyed.client("b"), max_tokens=90)


def test_one_giant_request_never_overdraws_a_key_s_minute(keyed: Keyed) -> None:
    few = keyed.client("few")
    told = "may take 201 tokens, 100 of its prompt and 101 of answers.*200 a minute: leave"
    asked: tuple[tuple[dict[str, Any], str], ...] = (
        ({"max_tokens": 101}, told),
        ({"max_tokens": 51, "n": 2}, "102 of answers"),
        ({}, "256 of answers"),
    )
    for options, said in asked:
        with pytest.raises(openai.BadRequestError, match=said) as refused:
            chat(few, **options)
        assert refused.value.code == "tokens_past_limit"
    assert keyed.gateway.models.asked == []
    chat(few, max_tokens=100)
    chat(keyed.client("b"), max_tokens=100)
    assert keyed.gateway.models.num_counted == 4  # none for a key without a limit


def test_a_key_s_bytes_hold_for_uploads_at_once_and_for_texts_in_chats(keyed: Keyed) -> None:
    def outcome(number: int) -> str:
        try:
            keyed.upload("small", TEXT + str(number).encode())
        except openai.APIStatusError as error:
            return str(error)
        return "taken"

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(outcome, range(6)))
    assert outcomes.count("taken") == 2
    assert sum("more than the 3000 it may have" in told for told in outcomes) == 4
    with pytest.raises(openai.InternalServerError, match="more than the 3000 it may have"):
        chat(keyed.client("small"), extra_body={"documents": [{"text": "Of a chat."}]})
    keyed.upload("b")


def test_metrics_are_403_without_the_right_and_no_key_is_logged(
    keyed: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        status = {
            name: keyed.client(name)
            ._client.get(
                f"{keyed.gateway.url}/metrics",
                headers={"authorization": f"Bearer {keyed.keys[name]}"},
            )
            .status_code
            for name in ("a", "b")
        }
    assert status == {"a": 200, "b": 403}
    assert not any(key in caplog.text for key in keyed.keys.values())

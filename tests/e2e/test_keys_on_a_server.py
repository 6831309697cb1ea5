"""A server with keys: its API asks for one everywhere, and Triton's ports are this machine's."""

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from browser import keep_screenshot, running_browser
from clients import WAYS, Ask
from playwright.sync_api import expect
from server import RunningServer, serving
from server_texts import TEXTS

from legokv.serving.api_keys import add_key, revoke_key

PATHS = (
    *("/v1/models", "/v1/files", "/v1/files/file-1", "/v1/files/file-1/content", "/metrics"),
    *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize", "/detokenize"),
    *("/v2/models/generate/generate", "/invocations", "/nothing"),
)


@dataclass(frozen=True)
class Keyed:
    server: RunningServer
    file: Path
    keys: dict[str, str]
    log: Path

    def client(self, name: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.server.api}/v1", api_key=self.keys[name], max_retries=0
        )


@pytest.fixture(name="keyed", scope="module")
def keyed_fixture(engine_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys.json"
    keys = {name: add_key(file, name, {"metrics": name == "a"})[0] for name in ("a", "b", "gone")}
    keys["one a second"], _ = add_key(file, "second", {"requests_per_minute": 60})
    log = folder / "log"
    with (
        log.open("wb") as opened,
        serving(
            engine_folder, folder, opened, api_keys=file, host="0.0.0.0", pool_tokens=8192
        ) as server,
    ):
        yield Keyed(server, file, keys, log)


def status(url: str, key: str = "", method: str = "GET") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_no_path_that_reads_or_computes_answers_without_a_key(keyed: Keyed) -> None:
    api = keyed.server.api
    told = {
        (path, method): status(f"{api}{path}", method=method)
        for path in PATHS
        for method in ("GET", "POST", "DELETE")
    }
    assert set(told.values()) == {401}
    for path in ("/", "/page/page.js", "/docs", "/health", "/ready", "/version"):
        assert status(f"{api}{path}") == 200
    assert [status(f"{api}/metrics", keyed.keys[name]) for name in ("a", "b")] == [200, 403]


def test_triton_s_ports_are_open_to_this_machine_s_address_alone(keyed: Keyed) -> None:
    server = keyed.server
    ports = {
        name: int(getattr(server, name).split("/metrics")[0].rpartition(":")[2])
        for name in ("api", "http", "grpc", "metrics")
    }
    reached = set()
    for name, port in ports.items():
        with socket.socket() as client:
            # All of 127.0.0.0/8 is this machine's: who listens everywhere hears it.
            if client.connect_ex(("127.0.0.2", port)) == 0:
                reached.add(name)
    assert reached == {"api"}


def test_a_key_s_documents_are_its_own_and_a_revoked_key_ends_at_once(keyed: Keyed) -> None:
    a, b, gone = map(keyed.client, ("a", "b", "gone"))
    file = a.files.create(file=("a.txt", TEXTS[0].encode()), purpose="user_data")
    content: list[Any] = [
        {"type": "file", "file": {"file_id": file.id}},
        {"type": "text", "text": "Where is the oldest?"},
    ]
    model = a.models.list().data[0].id
    messages: list[Any] = [{"role": "user", "content": content}]
    # Whatever is drawn, also an end.
    few = {"max_tokens": 4, "extra_body": {"min_tokens": 4}}
    answer = a.chat.completions.create(model=model, messages=messages, **few)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    with pytest.raises(openai.NotFoundError):
        b.chat.completions.create(model=model, messages=messages, max_tokens=4)
    assert gone.models.list().data[0].id == model
    revoke_key(keyed.file, "gone")
    with pytest.raises(openai.AuthenticationError):
        gone.models.list()
    log = keyed.log.read_text()
    assert "not known here, or was revoked" in log
    assert not any(key in log for key in keyed.keys.values())


def test_a_client_past_its_limit_tries_again_when_it_may_and_is_answered(keyed: Keyed) -> None:
    api, key = keyed.server.api, keyed.keys["one a second"]
    for ask in WAYS:
        # On a slow machine a second may go by before it asks: then again.
        assert any(use_up(api, key) or ask(api, key, max_retries=9) for _ in range(20)), ask
    for ask in WAYS[::2]:
        with pytest.raises((openai.RateLimitError, anthropic.RateLimitError), match="in 1 s"):
            ask_until_refused(api, key, ask)


def ask_until_refused(api: str, key: str, ask: Ask) -> None:
    for _ in range(20):
        use_up(api, key)
        ask(api, key, max_retries=0)


def use_up(api: str, key: str) -> None:
    """Ask until the minute's requests are used: several at once, faster than they come back."""
    with ThreadPoolExecutor(4) as threads:
        while 429 not in threads.map(lambda _: status(f"{api}/v1/models", key), range(8)):
            """Once more."""


def test_the_page_asks_for_the_key_and_shows_a_real_answer(keyed: Keyed) -> None:
    with running_browser() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(60_000)
        page.goto(keyed.server.api)
        page.get_by_role("dialog").get_by_label("API key").last.fill(keyed.keys["b"])
        page.keyboard.press("Enter")
        files: Any = [
            {"name": f"{n}.txt", "mimeType": "text/plain", "buffer": text.encode()}
            for n, text in enumerate(TEXTS[:2])
        ]
        page.get_by_label("Upload files").set_input_files(files)
        done = page.locator("#documents li[data-status=processed]")
        expect(done).to_have_count(2, timeout=60_000)
        expect(done.first.locator(".facts")).to_contain_text("pool")
        page.get_by_label("Longest answer").fill("8")
        page.get_by_role("textbox", name="Question", exact=True).fill("Who is the keeper?")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(".times")).to_have_count(1, timeout=60_000)
        page.get_by_role("button", name="Ask the same with everything recomputed").click()
        expect(page.locator(".times")).to_have_count(2, timeout=60_000)
        bars = page.get_by_role("img")
        expect(bars.first).to_have_attribute("aria-label", re.compile(r" [1-9]\d* cached, "))
        expect(bars.last).to_have_attribute("aria-label", re.compile(r" 0 cached, 0 compiled, "))
        keep_screenshot(page, "page-real")

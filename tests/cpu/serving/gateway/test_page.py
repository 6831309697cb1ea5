"""The page at `/` in a real browser: documents, their order, streamed answers, what they took."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import keep_screenshot, running_browser
from page_world import PageWorld, serving_page
from playwright.sync_api import Browser, BrowserContext, Page, expect

from legokv.serving.api_keys import add_key
from legokv.serving.gateway.guard import Rules
from legokv.serving.gateway.keys import Accounts
from legokv.serving.gateway.page_routes import page_routes

OPEN = Rules(None, (), 10**6, local=True)
NAMES = ("harbour.txt", "lamp.txt", "ferry.txt")
AGAIN = "Ask the same with everything recomputed"


@pytest.fixture(name="browser", scope="module")
def browser_fixture() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(name="context")
def context_fixture(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture(name="world")
def world_fixture() -> PageWorld:
    return PageWorld()


@pytest.fixture(name="page")
def page_fixture(context: BrowserContext, world: PageWorld) -> Iterator[Page]:
    """The page of a server without keys. It must not complain, nor ask anybody else."""
    with serving_page(world, OPEN) as address:
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: r.url.startswith(address) or complaints.append(r.url))
        page.goto(address)
        expect(page.locator("#model")).to_have_text("tiny")
        yield page
        page.close()
        strangers = [c for c in complaints if "400 (Bad Request)" not in c and "data:," not in c]
        assert strangers == []


def upload(page: Page, *names: str, content: bytes = b"The lamp was built in 1871. " * 8) -> None:
    files: Any = [{"name": n, "mimeType": "text/plain", "buffer": content} for n in names]
    page.get_by_label("Upload files").set_input_files(files)


def order(page: Page) -> list[str]:
    return page.locator("#order .name").all_inner_texts()


def ask(page: Page, question: str = "Who kept the lamp?") -> None:
    page.get_by_role("textbox", name="Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def test_an_answer_streams_and_shows_what_its_prompt_took_beside_everything_recomputed(
    page: Page, world: PageWorld
) -> None:
    upload(page, *NAMES)
    expect(page.locator("#documents li[data-status=processed]")).to_have_count(3)
    expect(page.locator("#documents .facts").first).to_have_text(
        "processed · 56 tokens · 1 of 1 chunk · 224 bytes · pool 1"
    )
    ask(page)
    expect(page.locator(".text")).to_have_text("The keeper was **Ana** <b>Reis</b>.")
    bar = page.get_by_role("img")
    expect(bar).to_have_attribute(
        "aria-label", "Prompt of 200 tokens: 112 cached, 40 compiled, 32 recomputed, 16 fresh"
    )
    widths = bar.locator("span").evaluate_all("s => s.map(e => e.getBoundingClientRect().width)")
    assert [round(width / sum(widths) * 200) for width in widths] == [112, 40, 32, 16]
    expect(page.locator(".times")).to_contain_text("first token after 42 ms in the server")
    page.get_by_role("button", name=AGAIN).click()
    expect(page.locator(".text")).to_have_count(2)
    expect(page.locator(".times").last).to_contain_text("first token after 900 ms in the server")
    expect(page.get_by_role("img").last).to_have_attribute(
        "aria-label", "Prompt of 200 tokens: 0 cached, 0 compiled, 184 recomputed, 16 fresh"
    )
    keep_screenshot(page, "page")
    linked, full = world.asked
    assert linked["link"] == {"mode": "legolink", "link_tokens": 16}
    assert full == {**linked, "link": {"mode": "full"}}
    parts = linked["messages"][0]["content"]
    assert [p["file"]["file_id"] for p in parts[:-1]] == ["file-0", "file-1", "file-2"]
    assert parts[-1] == {"type": "text", "text": "Who kept the lamp?"}


def test_documents_are_put_in_order_by_dragging_by_buttons_and_by_keys(
    page: Page, world: PageWorld
) -> None:
    upload(page, *NAMES)
    expect(page.locator("#order .name")).to_have_count(3)
    items = page.locator("#order li")
    items.nth(2).drag_to(items.nth(0))
    assert order(page) == ["ferry.txt", "harbour.txt", "lamp.txt"]
    items.nth(0).focus()
    page.keyboard.press("Alt+ArrowDown")
    assert order(page) == ["harbour.txt", "ferry.txt", "lamp.txt"]
    page.keyboard.press("Alt+ArrowDown")
    assert order(page) == ["harbour.txt", "lamp.txt", "ferry.txt"]
    page.get_by_role("button", name="Move ferry.txt up").click()
    page.get_by_role("button", name="Take lamp.txt out of the prompt").press("Enter")
    assert order(page) == ["harbour.txt", "ferry.txt"]
    page.get_by_role("button", name="Add lamp.txt to the prompt").click()
    page.get_by_role("button", name="Delete harbour.txt").click()
    expect(page.locator("#order .name")).to_have_text(["ferry.txt", "lamp.txt"])
    assert list(world.files) == ["file-1", "file-2"]
    ask(page)
    expect(page.get_by_role("img")).to_have_count(1)
    parts = world.asked[0]["messages"][0]["content"]
    assert [p["file"]["file_id"] for p in parts[:-1]] == ["file-2", "file-1"]


def test_texts_of_models_documents_and_errors_are_never_html(page: Page, world: PageWorld) -> None:
    hostile = "<img src=x onerror=document.title='HURT'><script>document.title='HURT'</script>"
    world.pieces = (hostile, "<svg onload=document.title='HURT'>")
    upload(page, "<img src=x onerror=document.title='HURT'>.txt")
    expect(page.locator("#documents .name")).to_contain_text("<img src=x")
    ask(page, hostile)
    expect(page.locator(".text")).to_have_text(hostile + "<svg onload=document.title='HURT'>")
    expect(page.locator("article h2")).to_have_text(hostile)
    upload(page, "<b>empty</b>.txt", content=b"")
    expect(page.locator("#documents-error")).to_have_text("<b>empty</b>.txt: the document is empty")
    assert page.locator("main img, main svg, main script, main b").count() == 0
    assert page.title() == "legokv"


def test_a_key_is_asked_for_and_kept_by_this_tab_alone(
    context: BrowserContext, world: PageWorld, tmp_path: Path
) -> None:
    key, _ = add_key(tmp_path / "keys", "a", {"metrics": True})
    rules = replace(OPEN, accounts=Accounts(tmp_path / "keys"))
    with serving_page(world, rules) as address:
        page = context.new_page()
        page.goto(address)
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        dialog.get_by_label("API key").last.fill("lk-wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("is not known here, or was revoked")
        keep_screenshot(page, "page-key")
        dialog.get_by_label("API key").last.fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("tiny")
        upload(page, "a.txt")
        expect(page.locator("#documents .name")).to_have_text("a.txt")
        assert page.evaluate("[sessionStorage.getItem('legokv-key'), localStorage.length]") == [
            key,
            0,
        ]
        assert page.evaluate("document.cookie") == ""
        with context.expect_page() as opened:
            page.get_by_role("link", name="Metrics").click()
        expect(opened.value.locator("body")).to_contain_text("legokv_pool_pages_used 3")
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_scrolling_aside_and_all_has_a_name(
    scheme: Any, page: Page
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 800})
    upload(page, *NAMES[:2], "a-name-that-is-long-and-has-no-blank-" * 4 + ".txt")
    ask(page)
    page.get_by_role("button", name=AGAIN).click()
    expect(page.get_by_role("img")).to_have_count(2)
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    keep_screenshot(page, f"page-narrow-{scheme}")
    controls = page.locator("button, input, select, textarea, a, dialog, section, ol, ul")
    for place in range(controls.count()):
        control = controls.nth(place)
        assert control.evaluate(NAMED), control.evaluate("e => e.outerHTML")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body)].map(s => [s.color, s.backgroundColor])[0]"
    )
    numbers = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (numbers[0] < numbers[1]) == (scheme == "light")


TOO_WIDE = """[...document.querySelectorAll('body *')].filter(
    e => e.getBoundingClientRect().right > 360).map(e => e.outerHTML.slice(0, 120))"""
# Whether an element is called something: by a label, its text, or an attribute.
NAMED = """e => Boolean(e.ariaLabel || e.labels?.[0]?.innerText.trim() || e.innerText.trim()
    || document.getElementById(e.getAttribute('aria-labelledby') ?? '')?.innerText.trim())"""


def test_the_page_s_policy_lets_nothing_of_others_in() -> None:
    routes = {route.path: route for route in page_routes()}
    assert set(routes) == {"/", "/page/page.js"}
    folder = Path(__file__).parents[4] / "src/legokv/serving/gateway/page"
    page, module = (folder / name for name in ("index.html", "page.js"))
    both = page.read_text() + module.read_text()
    assert (
        re.findall(r"https?://|//[a-z]+\.[a-z]|innerHTML|insertAdjacent|document\.write", both)
        == []
    )
    assert "style=" not in page.read_text()

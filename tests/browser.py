"""A headless Chromium of the machine for tests of the page, and where its pictures are kept."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paths import ROOT
from playwright.sync_api import Browser, Page, sync_playwright

SCREENSHOTS = ROOT / "out" / "screenshots"
"""Below the tests' output, which nobody commits."""


@contextmanager
def running_browser() -> Iterator[Browser]:
    """The browser; the test is skipped with the reason where the machine has none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium is installed: the page is not looked at")
    with sync_playwright() as playwright:
        # Tests run as root in containers, where Chromium's own sandbox does not start.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def keep_screenshot(page: Page, name: str) -> Path:
    """A picture of all of the page, kept under this name."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path

"""A headless Chromium for tests of pages, or in words why there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "NOT TESTED in a browser, as there is no Chromium; on Debian: apt-get install chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium; without one, skip on a user's machine and fail in CI."""
    path = next((found for found in map(shutil.which, NAMES) if found), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start as root or in most containers; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and all that it said and asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1440, scheme: str = "light") -> Iterator[Opened]:
    """Open a page and wait until its charts are drawn; fail if it complained or asked for anything else."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    result = Opened(context.new_page())
    result.page.on("console", lambda message: result.complaints.append(message.text))
    result.page.on("pageerror", lambda error: result.complaints.append(str(error)))
    result.page.on("dialog", lambda dialog: result.complaints.append(dialog.message))
    result.page.on("request", lambda request: result.requests.append(request.url))
    result.page.goto(path.as_uri())
    result.page.wait_for_function("document.documentElement.dataset.drawn === 'true'")
    yield result
    assert result.complaints == []
    assert [url for url in result.requests if not url.startswith("data:")] == [path.as_uri()]
    context.close()

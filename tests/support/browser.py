"""Real Chromium for the tests of the console, driven by Playwright.

A visitor's page fails its test for what must never happen in the console: an error in the browser's console, something
that the content security policy has stopped, a request to another host.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Locator,
        Page,
        Request,
    )
    from playwright.sync_api._generated import LocatorAssertions

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
DRAWING = os.environ.get("DRAW_CONSOLE") == "1"  # write the pictures of docs/console.md
Theme = Literal["light", "dark"]

_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
_WCAG = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
}

COLOURS = ("color-contrast", "link-in-text-block")  # the rules of axe that another theme of the same page can break


def chromium_path() -> str | None:
    """Where Chromium is: CHROMIUM, else a browser of the system; None: nowhere."""
    given = os.environ.get("CHROMIUM")
    return given or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium without a window. Skips the test where there is none."""
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium: install the package chromium, or set CHROMIUM to a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `test`")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def expect(there: Locator) -> LocatorAssertions:
    """What is expected of a place on the page: Playwright looks again until it is so, at most 60 s.

    A page that is still on its way has nothing on it yet, so `assert there.count() == 3` would depend on time.
    """
    from playwright.sync_api import expect as expect_of

    expect_of.set_options(timeout=60_000)
    return expect_of(there)


def is_true_soon(page: Page, condition: Callable[[], bool]) -> bool:
    """Whether it is true after a moment in which the page and its events go on."""
    page.wait_for_timeout(50)
    return condition()


@dataclass
class Visitor:
    """A page of a browser that has cookies of its own, and what went wrong in it. `expects`: what is meant to."""

    page: Page
    context: BrowserContext
    url: str
    faults: list[str] = field(default_factory=list)
    expects: list[str] = field(default_factory=list)

    def expect_fault(self, pattern: str) -> None:
        """A fault that matches this regular expression does not fail the test."""
        self.expects.append(pattern)

    def go(self, path: str) -> Page:
        """Open a path of the console, and wait until it is loaded."""
        self.page.goto(self.url + path)
        return self.page

    def sign_in(self, key: str) -> None:
        """By the form."""
        page = self.go("/console/sign-in")
        page.get_by_label("Key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/console")

    def check_access(self, where: str = "", rules: Sequence[str] = ()) -> None:
        """axe-core finds nothing on the page as it is now; with `rules`, only these are checked."""
        from axe_playwright_python.sync_playwright import Axe

        options = {"runOnly": {"type": "rule", "values": list(rules)}} if rules else _WCAG
        self.page.wait_for_load_state()  # what was clicked before may still be without its styles
        response: Any = Axe().run(self.page, options=options).response
        found = [
            f"{item['id']}: {item['help']}: {[node['html'][:160] for node in item['nodes'][:3]]}"
            for item in response["violations"]
        ]
        assert not found, f"{where or self.page.url}: {found}"

    def check_fits(self) -> None:
        """Nothing is wider than the window."""
        self.page.wait_for_load_state()
        overflow = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{self.page.url} is {overflow} pixels too wide at {self.page.viewport_size}"

    def draw(self, name: str) -> None:
        """The picture `console-NAME.png` of the documentation, if it is asked for."""
        if DRAWING:
            self.page.screenshot(path=PICTURES / f"console-{name}.png", animations="disabled")

    def check_faults(self) -> None:
        """Raises AssertionError for what went wrong and was not expected."""
        left = [fault for fault in self.faults if not any(re.search(pattern, fault) for pattern in self.expects)]
        assert not left, left


@contextmanager
def visiting(
    browser: Browser, url: str, *, theme: Theme = "light", width: int = 1400, height: int = 900, scripts: bool = True
) -> Iterator[Visitor]:
    """A visitor of the site at `url`; its faults fail the test at the end of the block."""
    context = browser.new_context(
        color_scheme=theme, viewport={"width": width, "height": height}, java_script_enabled=scripts, locale="en-GB"
    )
    context.set_default_timeout(60_000)
    page = context.new_page()
    visitor = Visitor(page, context, url)
    host = urlsplit(url).netloc

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            visitor.faults.append(f"console: {message.text}")

    def on_request(request: Request) -> None:
        there = urlsplit(request.url)
        if there.scheme in ("http", "https", "ws", "wss") and there.netloc != host:
            visitor.faults.append(f"request to another host: {request.url}")

    context.on("request", on_request)
    context.on("console", on_console)
    context.on("weberror", lambda error: visitor.faults.append(f"script: {error.error}"))
    try:
        yield visitor
        visitor.check_faults()
    finally:
        _leave(context)


def _leave(context: BrowserContext) -> None:
    """Close the pages. An error in the handler of a request that is still on its way is not raised in the next test."""
    try:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")
    finally:
        context.close()

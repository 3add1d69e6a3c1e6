"""Debian's Chromium, driven by Playwright: fixtures and helpers for tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from tests.support.chromium import launch
from tests.support.waiting import wait_until

_PATIENCE_MILLISECONDS = 60_000
"""For everything that a test waits for: the machine may be busy."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a module: as long as it runs, no event loop can be run in this thread."""
    expect.set_options(timeout=_PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def browser_context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without any memory; what its pages do wrong fails the test."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 800},
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",  # axe-core would look at colours that are on their way
    )
    context.set_default_timeout(_PATIENCE_MILLISECONDS)
    faults: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not _is_expected(message):
            faults.append(message.text)

    context.on("console", note)
    context.on("weberror", lambda error: faults.append(str(error.error)))
    yield context
    context.close()
    assert not faults, "\n".join(faults)


def follow(link: Locator) -> None:
    """Click what leads to another page, and wait until that page and its scripts are there."""
    with link.page.expect_navigation():
        link.click()


def files_input(page: Page) -> Locator:
    """Where the page of datasets takes files, once a script takes what is chosen."""
    found = page.locator("#files-to-upload")
    expect(found).to_be_enabled()
    return found


class HeldRequests:
    """What a page asks an address, each held until the test lets it go on; and the news that it hears."""

    def __init__(self, page: Page, url: str, topic: str = "") -> None:
        self._page = page
        self._routes: list[Route] = []
        page.route(url, self._hold)
        page.add_init_script(
            f"window.told = 0; document.addEventListener('sse:{topic}', () => {{ window.told += 1; }});"
        )

    def _hold(self, route: Route, request: Request) -> None:
        if request.is_navigation_request():
            route.continue_()
        else:
            self._routes.append(route)

    def next(self) -> Route:
        """The first that is held, once there is one."""
        wait_until(lambda: self._page.evaluate("1") and self._routes, "the page asks")
        return self._routes.pop(0)

    def wait_for_news(self, count: int) -> None:
        """Wait until the page has heard so often that something has changed."""
        self._page.wait_for_function("count => window.told >= count", arg=count)


def _is_expected(message: ConsoleMessage) -> bool:
    """Whether it only says that a request failed, as the page shows, or gave way to a newer one.

    htmx says of each request that it does not finish what became of it, and `htmx:afterRequest` besides.
    """
    if message.text.startswith(("htmx:sendAbort", "htmx:sendError", "htmx:afterRequest")):
        return True
    is_file = "/console/static/" in message.location["url"]
    return (
        message.text.startswith("Failed to load resource")
        and not is_file
        and "status of 5" not in message.text
    )

"""The console in a real browser, for a service on either database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page

from app.auth import service as auth_service
from app.auth.roles import Role
from app.core.database import Database
from tests.support.service import API_KEY, OTHER_KEY, Service


@dataclass(frozen=True)
class Console:
    """A service with its console, on either database, and the keys of its two projects."""

    service: Service
    database: Database
    key: str = API_KEY
    """Of the first project, with the role `admin`."""
    other_key: str = OTHER_KEY
    """Of the other project, with the role `project`."""

    @property
    def url(self) -> str:
        """The address of the console; a page's path without `/console` goes after it."""
        return f"{self.service.url}/console"

    def key_with_role(self, role: Role) -> str:
        """Make a key of the first project."""
        with self.database.writer() as session:
            project = auth_service.create_project(session, auth_service.FIRST_PROJECT)
            return auth_service.create_key(session, project.id, f"a key to {role}", role=role)[1]

    def sign_in(self, page: Page, key: str | None = None) -> None:
        """Sign in with the form's request, which is faster than with the form; the page stays where it is."""
        answer = page.request.post(f"{self.url}/sign-in", form={"api_key": key or self.key}, max_redirects=0)
        assert answer.status == 303, answer.text()


@pytest.fixture
def console(service: Service, database: Database) -> Console:
    return Console(service, database)


@pytest.fixture
def page(console: Console, browser_context: BrowserContext) -> Page:
    """A page of somebody who has signed in with the first project's key."""
    page = browser_context.new_page()
    console.sign_in(page)
    return page


@pytest.fixture
def stranger(browser_context: BrowserContext) -> Page:
    """A page of somebody who has not signed in."""
    return browser_context.new_page()


def _assert_accessible(page: Page) -> None:
    results: dict[str, Any] = Axe().run(page).response
    grave = [each for each in results["violations"] if each["impact"] in {"serious", "critical"}]
    assert not grave, "\n".join(
        f"{each['id']}: {each['help']}: {[node['html'] for node in each['nodes']][:3]}" for each in grave
    )


@pytest.fixture
def assert_accessible() -> Callable[[Page], None]:
    """Fails the test if axe-core finds anything serious or critical on a page."""
    return _assert_accessible

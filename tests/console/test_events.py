"""Pages hear of changes: in a browser, after a restart, and at the price of one query."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy.orm import Session

from app.auth import service as auth_service
from app.auth.models import Project
from app.auth.roles import Action
from app.console import events
from app.context import Context
from app.core.database import Database
from app.core.settings import Settings
from app.models.aliases.models import Alias
from tests.console.conftest import Console
from tests.support.browser import HeldRequests
from tests.support.service import API_KEY, BASE_MODEL, OTHER_KEY, Service, run_service
from tests.support.waiting import wait_until


def point_alias(database: Database, name: str, project: str = "default") -> None:
    with database.writer() as session:
        owner = session.query(Project).filter_by(name=project).one()
        share: Any = {"model": BASE_MODEL, "weight": 1.0}
        session.add(Alias(project_id=owner.id, name=name, split=[share], version=1))


class Watching:
    """A page's connection, without a browser."""

    def __init__(self, service: Service, *topics: str, key: str = API_KEY) -> None:
        with service.http(None) as http:
            assert http.post("/console/sign-in", data={"api_key": key}).status_code == 303
            cookie = http.cookies["toque_session"]
        self.events: list[str] = []
        self._connection = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])))
        query = "&".join(f"watch={topic}" for topic in topics)
        head = (
            f"GET /console/events?{query} HTTP/1.1\r\nhost: toque\r\ncookie: toque_session={cookie}\r\n\r\n"
        )
        self._connection.sendall(head.encode())
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _read(self) -> None:
        with self._connection.makefile("r") as lines:
            for line in lines:
                if line.startswith("event: "):
                    self.events.append(line.removeprefix("event: ").strip())

    def wait_for(self, count: int) -> list[str]:
        """The events so far, once there are so many."""
        wait_until(lambda: len(self.events) >= count, f"{count} events")
        return self.events


class Looks:
    """A topic that counts how often it is looked at, and changes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.count = self.value = 0
        self.problem: Exception | None = None
        monkeypatch.setitem(events._TOPICS, name, events.Topic(self._look, Action.READ))

    def _look(self, _session: Session, _context: Context, _argument: str) -> str:
        self.count += 1
        if self.problem is not None:
            raise self.problem
        return str(self.value)

    def wait_for_more(self, looks: int) -> None:
        seen = self.count
        wait_until(lambda: self.count >= seen + looks, "somebody looks again")


@pytest.mark.one_database
def test_times_are_the_readers_own_as_soon_as_a_part_is_there(console: Console, page: Page) -> None:
    page.goto(console.url)
    page.evaluate(
        """() => {
            window.foreign = 0;
            const look = () => {
                window.foreign += document.querySelector("main").innerText.includes("UTC");
                requestAnimationFrame(look);
            };
            look();
        }"""
    )
    point_alias(console.database, "soups")
    expect(page.locator("main")).to_contain_text("soups")
    expect(page.locator("main time").first).to_be_visible()
    assert page.evaluate("window.foreign") == 0


@pytest.mark.one_database
def test_a_change_reaches_the_page_that_is_open(console: Console, page: Page) -> None:
    page.goto(console.url)
    expect(page.get_by_role("heading", name="Four steps to a model of your own")).to_be_visible()
    point_alias(console.database, "menu:production")
    expect(page.get_by_role("heading", name="Aliases")).to_be_visible()
    expect(page.get_by_text("menu:production")).to_be_visible()


@pytest.mark.one_database
def test_a_change_while_the_page_asks_is_not_missed(console: Console, page: Page) -> None:
    requests = HeldRequests(page, "**/console/overview", "overview")
    page.goto(console.url)
    request = requests.next()
    answer = request.fetch()
    point_alias(console.database, "menu:production")
    requests.wait_for_news(2)
    request.fulfill(response=answer)
    requests.next().continue_()
    expect(page.get_by_text("menu:production")).to_be_visible()


@pytest.mark.one_database
def test_a_page_goes_on_after_a_restart_of_the_api(
    settings: Settings, database: Database, browser: Browser
) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        with run_service(settings) as first:
            console = Console(first, database)
            console.sign_in(page)
            page.goto(console.url)
            point_alias(database, "menu:before")
            expect(page.get_by_text("menu:before")).to_be_visible()
            port = int(first.url.rpartition(":")[2])
        expect(page.get_by_text("The connection to Toque is lost")).to_be_visible()
        point_alias(database, "menu:meanwhile")
        with run_service(settings, port):
            expect(page.get_by_text("menu:meanwhile")).to_be_visible()
            expect(page.get_by_text("The connection to Toque is lost")).to_be_hidden()
            point_alias(database, "menu:after")
            expect(page.get_by_text("menu:after")).to_be_visible()


@pytest.mark.one_database
def test_pages_hear_of_changes_after_a_look_that_failed(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Looks(monkeypatch, "topic")
    topic.problem = ValueError("a row that nobody expected")
    with Watching(console.service, "topic") as page:
        topic.wait_for_more(2)
        topic.problem = None
        assert page.wait_for(1) == ["topic"]


@pytest.mark.one_database
def test_what_many_watch_is_looked_at_once(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, single = Looks(monkeypatch, "shared"), Looks(monkeypatch, "single")
    with Watching(console.service, "single", "shared") as one, Watching(console.service, "shared") as two:
        assert sorted(one.wait_for(2)) == ["shared", "single"]
        assert two.wait_for(1) == ["shared"]
        single.wait_for_more(1)
        shared.value, before = 1, (shared.count, single.count)
        assert one.wait_for(3)[2:] == ["shared"]
        assert two.wait_for(2) == ["shared", "shared"]
        single.wait_for_more(3)
        assert abs((shared.count - before[0]) - (single.count - before[1])) <= 1
    with Watching(console.service, "single"):
        wait_until(lambda: is_forgotten(shared, single), "what nobody watches any more is forgotten")


@pytest.mark.one_database
def test_who_leaves_is_forgotten(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    left, stays = Looks(monkeypatch, "left"), Looks(monkeypatch, "stays")
    with Watching(console.service, "stays"):
        with Watching(console.service, "left") as leaving:
            leaving.wait_for(1)
            left.wait_for_more(1)
        wait_until(lambda: is_forgotten(left, stays), "the page that left is forgotten")


def is_forgotten(left: Looks, stays: Looks) -> bool:
    """Whether nobody looks at the one while the other is looked at."""
    seen = left.count
    stays.wait_for_more(2)
    return left.count == seen


@pytest.mark.one_database
def test_a_page_that_nobody_sees_holds_no_connection(
    console: Console, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, overview = Looks(monkeypatch, "stays"), Looks(monkeypatch, "overview")
    page.goto(console.url)
    overview.wait_for_more(1)
    with Watching(console.service, "stays"):
        show(page, False)
        wait_until(lambda: is_forgotten(overview, stays), "the page that nobody sees is forgotten")
    point_alias(console.database, "menu:meanwhile")
    show(page, True)
    expect(page.get_by_text("menu:meanwhile")).to_be_visible()


def show(page: Page, is_visible: bool) -> None:
    """Do what a browser does when its reader turns to this tab, or to another one."""
    page.evaluate(
        """(isHidden) => {
            Object.defineProperty(document, "hidden", {value: isHidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        not is_visible,
    )


def test_a_project_hears_nothing_of_others(console: Console) -> None:
    with (
        Watching(console.service, "overview") as mine,
        Watching(console.service, "overview", key=OTHER_KEY) as other,
    ):
        mine.wait_for(1)
        other.wait_for(1)
        wait_until(lambda: _can_hear(console, other), "the other project hears of its own change")
        assert mine.events == ["overview"]


def _can_hear(console: Console, watching: Watching) -> bool:
    before = len(watching.events)
    point_alias(console.database, f"other:{before}-{time.monotonic_ns()}", "other")
    watching.wait_for(before + 1)
    return True


@pytest.mark.one_database
def test_a_stream_ends_with_its_session(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_KEEP_ALIVE_SECONDS", 0.2)
    with Watching(console.service, "overview", key=OTHER_KEY) as watching:
        watching.wait_for(1)
        with console.database.writer() as session:
            caller = auth_service.find_caller(session, auth_service.digest(OTHER_KEY))
            auth_service.revoke_key(session, caller.key_id)
        wait_until(lambda: not watching.is_open, "the stream ends")


@pytest.mark.one_database
def test_a_key_cannot_take_all_connections(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST_PAGES", 2)

    def is_refused() -> bool:
        with console.service.http(None) as http:
            http.post("/console/sign-in", data={"api_key": API_KEY})
            with http.stream("GET", "/console/events?watch=overview") as answer:
                assert answer.status_code == 200 or "close some of them" in answer.read().decode()
                return answer.status_code == 429

    with Watching(console.service, "overview") as one:
        with (
            Watching(console.service, "jobs") as two,
            Watching(console.service, "jobs", key=OTHER_KEY) as other,
        ):
            for each in (one, two, other):
                each.wait_for(1)
            assert is_refused()
        wait_until(lambda: not is_refused(), "a page that was closed makes room")


@pytest.mark.one_database
def test_what_cannot_be_watched_is_refused(console: Console) -> None:
    def status(key: str, query: str) -> int:
        with console.service.http(None) as http:
            http.post("/console/sign-in", data={"api_key": key})
            return http.get(f"/console/events?{query}").status_code

    assert status(API_KEY, "watch=nothing") == 400
    assert status(API_KEY, "watch=overview%0Aevent:x") == 400
    assert status(API_KEY, "watch=overview:" + "x" * 300) == 400
    assert status(API_KEY, "") == 400
    assert status(API_KEY, "&".join(["watch=overview"] * 21)) == 400
    assert status(console.key_with_role("inference"), "watch=overview") == 403
    assert status("sk-toque-nobody", "watch=overview") == 303

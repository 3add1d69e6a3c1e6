"""The playground in a browser, with an engine that says what the test wants."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import Locator, Page, expect

from app.auth import service as auth_service
from app.core.database import Database
from tests.app.comparisons.stub_engine import TUNED, add_tuned
from tests.console.conftest import Console
from tests.console.talking_engine import TalkingEngine, said
from tests.support.browser import HeldRequests
from tests.support.engine_stand_in import register_engine, run_engine
from tests.support.service import BASE_MODEL

HOSTILE = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'


@pytest.fixture
def engine(database: Database) -> Iterator[TalkingEngine]:
    stand_in = TalkingEngine()
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(stand_in, socket):
            register_engine(database, f"unix:{socket}")
            yield stand_in
            stand_in.go_on.set()


def column(page: Page, model: str) -> Locator:
    return page.locator(f'.column[data-model="{model}"]')


def ask(page: Page, question: str) -> None:
    page.get_by_role("textbox", name="Question").fill(question)
    page.get_by_role("button", name="Ask").click()


def figure(at: Locator, label: str) -> Locator:
    return at.locator("dt", has_text=label).locator("xpath=following-sibling::dd")


def test_two_models_answer_side_by_side_as_they_speak(
    console: Console,
    page: Page,
    database: Database,
    engine: TalkingEngine,
    assert_accessible: Callable[[Page], None],
) -> None:
    add_tuned(database)
    engine.tokens_of = {
        BASE_MODEL: [("Stew", 0.5), ("!", 0.9)],
        TUNED: [("Soup", 0.95), (" 7", 0.9), (".", 0.9)],
    }
    page.goto(f"{console.url}/playground")
    base, tuned = column(page, BASE_MODEL), column(page, TUNED)
    expect(page.locator(".column")).to_have_count(2)

    engine.go_on.clear()
    page.locator("summary", has_text="System prompt").click()
    page.get_by_label("System prompt").fill("You cook.")
    page.get_by_label("Seed").fill("7")
    ask(page, "What is in pot 7?")
    expect(base.locator(".answer")).to_have_text("Stew")
    expect(tuned.locator(".answer")).to_have_text("Soup")
    expect(tuned).to_have_attribute("aria-busy", "true")
    engine.go_on.set()
    expect(tuned.locator(".answer")).to_have_text("Soup 7.")
    expect(base.locator(".answer")).to_have_text("Stew!")
    expect(figure(tuned, "Tokens").first).to_have_text("3")
    expect(figure(tuned, "Ended")).to_have_text("complete")
    expect(figure(tuned, "First token")).to_contain_text(" s")
    assert [said(engine, place) for place in (0, 1)] == [
        [("system", "You cook."), ("user", "What is in pot 7?")]
    ] * 2
    assert [(body["seed"], body["temperature"], body["max_completion_tokens"]) for body in engine.bodies] == [
        (7, 0, 256)
    ] * 2
    assert_accessible(page)

    tuned.get_by_role("button", name="Continue").click()
    page.get_by_role("textbox", name="Turn 3").fill("And in pot 8?")
    page.keyboard.press("Control+Enter")
    expect(tuned).to_have_attribute("aria-busy", "false")
    assert said(engine, 2)[1:] == [
        ("user", "What is in pot 7?"),
        ("assistant", "Soup 7."),
        ("user", "And in pot 8?"),
    ]


@pytest.mark.one_database
def test_tokens_show_their_probabilities_by_keyboard(
    console: Console, page: Page, engine: TalkingEngine, assert_accessible: Callable[[Page], None]
) -> None:
    engine.tokens_of[BASE_MODEL] = [("Leek", 0.95), (" so", 0.6), ("up", 0.04)]
    page.goto(f"{console.url}/playground")
    page.get_by_label("Tokens’ probabilities").check()
    ask(page, "Soup?")
    at = column(page, BASE_MODEL)
    expect(at).to_have_attribute("aria-busy", "false")
    expect(at.locator(".token")).to_have_count(3)
    assert [each.get_attribute("class") for each in at.locator(".token").all()] == [
        "token token-sure",
        "token token-likely",
        "token token-unlikely",
    ]
    at.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    expect(at.locator(".token-detail")).to_contain_text("␣so 60.0 %")
    page.keyboard.press("End")
    expect(at.locator(".token-detail li").nth(1)).to_contain_text("␣other")
    expect(at.locator(".token-detail li").nth(1)).to_contain_text("48.0 %")
    at.locator(".token").first.hover()
    expect(at.locator(".token-detail")).to_contain_text("Leek 95.0 %")
    assert_accessible(page)


@pytest.mark.one_database
def test_each_column_shows_its_own_error(
    console: Console, page: Page, database: Database, engine: TalkingEngine
) -> None:
    add_tuned(database)
    engine.breaks.add(TUNED)
    page.goto(f"{console.url}/playground?model={BASE_MODEL}&model={TUNED}&model=nobody")
    ask(page, "Soup?")
    expect(column(page, BASE_MODEL).locator(".answer")).to_have_text("Leek.")
    expect(column(page, BASE_MODEL).get_by_role("alert")).to_be_hidden()
    expect(column(page, TUNED).get_by_role("alert")).to_contain_text("broke off")
    expect(column(page, TUNED).locator(".answer")).to_have_text("Leek")
    expect(column(page, "nobody").get_by_role("alert")).to_contain_text("The model 'nobody' does not exist")


@pytest.mark.one_database
def test_an_answer_is_stopped(console: Console, page: Page, engine: TalkingEngine) -> None:
    engine.go_on.clear()
    page.goto(f"{console.url}/playground")
    ask(page, "Soup?")
    at = column(page, BASE_MODEL)
    expect(at.locator(".answer")).to_have_text("Leek")
    page.get_by_role("button", name="Stop").click()
    expect(figure(at, "Ended")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert engine.disconnected.wait(30)


def test_models_are_found_and_an_alias_says_which_version_answered(
    console: Console, page: Page, client: OpenAI, database: Database, engine: TalkingEngine
) -> None:
    for number in range(30):
        add_tuned(database, f"ft:{BASE_MODEL}:default:broth-{number:02}:a{number}", created_at=float(number))
    client.put("/aliases/kitchen", cast_to=object, body={"model": BASE_MODEL})
    client.put(
        "/aliases/kitchen",
        cast_to=object,
        body={"model": f"ft:{BASE_MODEL}:default:broth-05:a5", "version": 1},
    )
    page.goto(f"{console.url}/playground?model={BASE_MODEL}")
    page.get_by_role("button", name="Add a model").click()
    dialog = page.get_by_role("dialog", name="Add a model")
    expect(dialog.get_by_role("button", name="broth")).to_have_count(26)  # and the alias that leads to one
    dialog.get_by_role("button", name="Show more").click()
    expect(dialog.get_by_role("button", name="broth")).to_have_count(31)
    page.get_by_label("Search by a part of the name").fill("BROTH-07 %")
    expect(dialog.get_by_text('No model has "BROTH-07 %" in its name.')).to_be_visible()
    page.get_by_label("Search by a part of the name").fill("kitch")
    expect(dialog.get_by_role("button", name="broth")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(column(page, "kitchen")).to_be_visible()
    expect(page).to_have_url(f"{console.url}/playground?model={BASE_MODEL}&model=kitchen")
    ask(page, "Soup?")
    expect(column(page, "kitchen").locator(".served")).to_have_text(
        f"Version 2: answered by ft:{BASE_MODEL}:default:broth-05:a5"
    )


@pytest.mark.one_database
def test_models_that_are_picked_quickly_all_come(console: Console, page: Page, database: Database) -> None:
    names = [add_tuned(database, f"ft:{BASE_MODEL}:default:broth:{name}") for name in "abc"]
    requests = HeldRequests(page, "**/console/playground/column?*")
    page.goto(f"{console.url}/playground?model={BASE_MODEL}")
    for name in (*names, names[2]):
        page.get_by_role("button", name="Add a model").click()
        page.get_by_role("dialog").get_by_role("button", name=name).click()
    for _ in range(4):
        requests.next().continue_()
    expect(page.get_by_role("button", name="Add a model")).to_be_hidden()
    expect(page.locator(".column h3")).to_have_text([BASE_MODEL, *names])
    expect(page).to_have_url(
        re.compile("".join(f"[?&]model={re.escape(name)}" for name in names).replace(":", "%3A") + "$")
    )


@pytest.mark.one_database
def test_the_version_is_that_of_the_last_answer(
    console: Console, page: Page, client: OpenAI, database: Database, engine: TalkingEngine
) -> None:
    client.put("/aliases/kitchen", cast_to=object, body={"model": add_tuned(database)})
    requests = HeldRequests(page, "**/console/playground/version?*")
    page.goto(f"{console.url}/playground?model=kitchen")
    ask(page, "Soup?")
    earlier = requests.next()
    ask(page, "Stew?")
    later = requests.next()
    for request, version in ((later, 2), (earlier, 1)):
        with page.expect_request_finished(lambda sent, request=request: sent == request.request):
            request.fulfill(json={"version": version})
    expect(column(page, "kitchen").locator(".served")).to_have_text(f"Version 2: answered by {TUNED}")


@pytest.mark.one_database
def test_a_question_cannot_be_asked_before_the_page_listens(console: Console, page: Page) -> None:
    page.route("**/playground.js", lambda route: None)
    page.goto(f"{console.url}/playground?model={BASE_MODEL}", wait_until="commit")
    expect(page.get_by_role("button", name="Ask")).to_be_disabled()


@pytest.mark.one_database
def test_the_question_is_shown_as_code(console: Console, page: Page, engine: TalkingEngine) -> None:
    page.goto(f"{console.url}/playground")
    ask(page, 'It\'s "hot"\nor not?')
    column(page, BASE_MODEL).get_by_role("button", name="Code").click()
    python = page.locator("#code-python").inner_text()
    given: dict[str, object] = {}

    class Stub:
        def __init__(self, base_url: str) -> None:
            assert base_url == f"{console.service.url}/v1"
            self.chat = self.completions = self

        def create(self, **request: object) -> Stub:
            given.update(request)
            return self

        def __getattr__(self, name: str) -> list[Stub]:
            return [self]

    lines = [line for line in python.split("\n") if not line.startswith(("from", "print"))]
    exec("\n".join(lines), {"OpenAI": Stub})
    assert given == {
        "model": BASE_MODEL,
        "messages": [{"role": "user", "content": 'It\'s "hot"\nor not?'}],
        "temperature": 0,
        "max_completion_tokens": 256,
    }
    assert "'\\''" in page.locator("#code-curl").inner_text()


@pytest.mark.one_database
def test_hostile_texts_are_only_texts(
    console: Console, page: Page, database: Database, engine: TalkingEngine
) -> None:
    name = add_tuned(database, f"ft:{BASE_MODEL}:default:x:{HOSTILE}")
    engine.tokens_of[name] = [(HOSTILE, 0.5), ("<b>", 0.5)]
    page.goto(f"{console.url}/playground")
    page.get_by_label("Tokens’ probabilities").check()
    ask(page, HOSTILE)
    at = page.locator(".column").nth(1)
    expect(at).to_have_attribute("aria-busy", "false")
    at.locator(".token").first.focus()
    expect(at.locator(".token").first).to_have_text(HOSTILE)
    assert at.locator("img, script, b").count() == 0
    page.get_by_role("button", name="Add a model").click()
    expect(page.get_by_role("dialog").get_by_role("button", name="onerror")).to_be_visible()
    expect(page).to_have_title("Playground · Toque")


def test_a_key_sees_and_asks_only_its_own_models(
    console: Console, stranger: Page, database: Database, engine: TalkingEngine
) -> None:
    add_tuned(database)
    with database.writer() as session:
        project = auth_service.create_project(session, auth_service.FIRST_PROJECT)
        _, key = auth_service.create_key(session, project.id, "one model", role="inference", models=[TUNED])
    console.sign_in(stranger, key)
    stranger.goto(f"{console.url}/playground")
    expect(stranger.locator(".column")).to_have_count(1)
    ask(stranger, "Soup?")
    expect(column(stranger, TUNED).locator(".answer")).to_have_text("Leek.")
    stranger.goto(f"{console.url}/playground?model={BASE_MODEL}")
    ask(stranger, "Soup?")
    expect(column(stranger, BASE_MODEL).get_by_role("alert")).to_contain_text("does not have access")


@pytest.mark.one_database
def test_readers_cannot_ask(console: Console, stranger: Page) -> None:
    console.sign_in(stranger, console.key_with_role("read"))
    stranger.goto(console.url)
    expect(stranger.get_by_role("link", name="Models")).to_be_visible()
    expect(stranger.get_by_role("link", name="Playground")).to_have_count(0)
    stranger.goto(f"{console.url}/playground")
    expect(stranger.get_by_text("This needs a key with the role 'inference'")).to_be_visible()

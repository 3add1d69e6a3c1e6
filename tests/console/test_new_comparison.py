"""New comparisons in a browser: the form, its refusals, and how a comparison is watched."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect

from app.comparisons.models import Comparison
from app.core.database import Database
from tests.app.comparisons.conftest import engine  # noqa: F401 # pyright: ignore[reportUnusedImport] - a fixture
from tests.app.comparisons.stub_engine import TUNED, StubEngine, add_tuned, create, get, lines, upload
from tests.console.conftest import Console
from tests.support.browser import HeldRequests, follow


def test_a_comparison_is_made_and_watched_and_cancelled(
    console: Console,
    page: Page,
    client: OpenAI,
    database: Database,
    engine: StubEngine,  # noqa: F811 - a fixture
    assert_accessible: Callable[[Page], None],
) -> None:
    add_tuned(database)
    file = upload(client, lines(range(100, 140)))
    engine.hold_after = 8
    engine.go_on.clear()
    page.goto(f"{console.url}/comparisons")
    follow(page.get_by_role("link", name="New comparison"))
    assert_accessible(page)

    page.get_by_role("button", name="Choose a held-out file").click()
    page.get_by_role("dialog").get_by_role("button", name=file).click()
    expect(page.get_by_role("textbox", name="Held-out file")).to_have_value(file)
    page.get_by_label("Name", exact=True).first.fill("pots")
    page.get_by_role("group", name="Add a candidate").get_by_role("button", name="examples").click()
    expect(page.get_by_label("Examples", exact=True)).to_have_value("5")
    page.get_by_role("group", name="The base model with examples").get_by_label("Remove").click()

    page.get_by_role("button", name="Check what it asks for").click()
    expect(page.locator("#check")).to_contain_text("Fill in 'system'.")
    follow(page.get_by_role("button", name="Compare"))
    expect(page.locator('[id="candidates[1].system-problem"]')).to_have_text("Fill in 'system'.")
    expect(page.get_by_label("System prompt")).to_have_attribute("aria-invalid", "true")
    assert_accessible(page)

    page.get_by_label("System prompt").fill("You know all pots.")
    page.get_by_role("button", name="Check what it asks for").click()
    expect(page.locator("#check")).to_contain_text(
        "120 answers: 40 held-out questions, asked of 3 candidates"
    )
    follow(page.get_by_role("button", name="Compare"))
    expect(page.get_by_text("of 120 answers are there")).to_be_visible()
    comparison_id = page.url.rpartition("/")[2]
    shown = get(client, comparison_id)
    assert [each["name"] for each in shown["candidates"]] == ["base", "prompt", TUNED]
    assert shown["candidates"][1]["system"] == "You know all pots."
    assert_accessible(page)

    engine.go_on.set()
    expect(page.get_by_role("heading", name="Fine-tuning wins")).to_be_visible()

    engine.go_on.clear()
    engine.hold_after = 0
    again = create(client, file=file, candidates=[{"type": "base"}, {"type": "model", "model": TUNED}])
    page.goto(f"{console.url}/comparisons/{again['id']}")
    follow(page.get_by_role("button", name="Cancel"))
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible()
    assert get(client, again["id"])["status"] == "cancelled"
    engine.go_on.set()


@pytest.mark.one_database
def test_candidates_that_are_added_quickly_all_come(console: Console, page: Page) -> None:
    requests = HeldRequests(page, "**/console/comparisons/new/candidate?*")
    page.goto(f"{console.url}/comparisons/new")
    candidates = page.locator("#candidate-list fieldset")
    expect(candidates).to_have_count(3)
    add = page.get_by_role("group", name="Add a candidate")
    for kind in ("examples", "a model", "a prompt"):
        add.get_by_role("button", name=kind, exact=True).click()
    name = page.get_by_label("Name", exact=True).first
    name.fill("po")
    for _ in range(3):
        requests.next().continue_()
    expect(candidates).to_have_count(6)
    page.keyboard.type("ts")
    expect(name).to_have_value("pots")


@pytest.mark.one_database
def test_graders_have_their_settings_and_refusals_their_fields(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    add_tuned(database)
    file = upload(client, lines(range(100, 140)))
    page.goto(f"{console.url}/comparisons/new?file={file}")
    page.get_by_label("System prompt").fill("Cook.")
    grader = page.get_by_label("How answers get their score")
    grader.select_option("regex")
    page.get_by_label("Pattern").fill("(")
    page.get_by_label("Ignore case").check()
    follow(page.get_by_role("button", name="Compare"))
    expect(page.locator('[id="grader.pattern-problem"]')).to_contain_text("missing )")
    expect(page.get_by_label("Ignore case")).to_be_checked()
    expect(page.get_by_label("Full")).not_to_be_checked()

    grader.select_option("label_f1")
    page.get_by_label("Labels").fill("a\nb")
    follow(page.get_by_role("button", name="Compare"))
    expect(page.locator("#grader-problem")).to_contain_text("none of the labels")

    grader.select_option("document")
    page.get_by_label("Document").fill('{"type": "all", "graders": [')
    follow(page.get_by_role("button", name="Compare"))
    expect(page.locator("#grader-problem")).to_contain_text("This is not valid JSON")
    document = {"type": "all", "graders": ["contains", {"type": "regex", "pattern": "^Soup"}]}
    page.get_by_label("Document").fill(json.dumps(document))
    page.get_by_role("textbox", name="Held-out file").fill("file-nobody")
    follow(page.get_by_role("button", name="Compare"))
    expect(page.locator("#file-problem")).to_contain_text("file-nobody")
    page.get_by_role("textbox", name="Held-out file").fill(file)
    follow(page.get_by_role("button", name="Compare"))
    page.wait_for_url("**/comparisons/cmp_*")
    assert get(client, page.url.rpartition("/")[2])["grader"] == document


@pytest.mark.one_database
def test_general_questions_may_have_a_grader_of_their_own(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    add_tuned(database)
    file, general = (upload(client, lines(range(first, first + 40))) for first in (100, 200))
    page.goto(f"{console.url}/comparisons/new?file={file}")
    page.get_by_label("System prompt").fill("Cook.")
    page.get_by_text("More settings").click()
    page.get_by_role("textbox", name="General questions", exact=True).fill(general)
    grader = page.get_by_label("Grader of the general questions")
    for wrong, problem in (('{"type": ', "This is not valid JSON"), ("taste", "'taste' is none of")):
        grader.fill(wrong)
        follow(page.get_by_role("button", name="Compare"))
        expect(page.locator("#regression_grader-problem")).to_contain_text(problem)
        expect(grader).to_have_value(wrong)
    document = {"type": "regex", "pattern": "^Soup"}
    grader.fill(json.dumps(document))
    follow(page.get_by_role("button", name="Compare"))
    page.wait_for_url("**/comparisons/cmp_*")
    made = get(client, page.url.rpartition("/")[2])
    assert (made["grader"], made["regression_grader"]) == ("exact_match", document)


@pytest.mark.one_database
def test_the_form_sent_twice_makes_one_comparison(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    add_tuned(database)
    file = upload(client, lines(range(100, 140)))
    page.goto(f"{console.url}/comparisons/new?file={file}")
    page.get_by_label("System prompt").fill("Cook.")
    filled = page.evaluate("Object.fromEntries(new FormData(document.getElementById('comparison')))")
    for _ in range(2):
        assert page.request.post(f"{console.url}/comparisons", form=filled).ok
    with database.reader() as session:
        assert session.query(Comparison).count() == 1


@pytest.mark.one_database
def test_a_request_that_does_not_arrive_is_told(console: Console, page: Page) -> None:
    page.route("**/comparisons/check", lambda route: route.abort(), times=1)
    page.goto(f"{console.url}/comparisons/new")
    page.get_by_role("button", name="Check what it asks for").click()
    expect(page.locator("#alerts")).to_have_text("Toque could not be reached. Try again.")
    page.get_by_role("button", name="Check what it asks for").click()
    expect(page.locator("#check")).to_contain_text("Fill in")
    expect(page.locator("#alerts")).to_be_empty()

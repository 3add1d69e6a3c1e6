"""Comparisons in a browser: read, made and watched."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from playwright.sync_api import Locator, Page, expect

from app.comparisons.report.figures import percent, signed_points
from app.comparisons.results import CheckpointCurve, CheckpointPoint, ComparisonResults, Interval, SliceResult
from app.core.database import Database
from tests.app.comparisons.conftest import engine  # noqa: F401 # pyright: ignore[reportUnusedImport] - a fixture
from tests.app.comparisons.stub_engine import (
    TUNED,
    StubEngine,
    add_tuned,
    create,
    ended,
    get,
    lines,
    number_asked,
    refusal,
    upload,
)
from tests.console.conftest import Console
from tests.support import comparison_results as made
from tests.support.browser import HeldRequests

HOSTILE = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'


def open_comparison(console: Console, page: Page, comparison_id: str, query: str = "") -> None:
    page.goto(f"{console.url}/comparisons/{comparison_id}{query}")


def row(page: Page, section: str, text: str) -> Locator:
    return (
        page.locator("section")
        .filter(has=page.get_by_role("heading", name=section, exact=True))
        .locator("tr", has_text=text)
    )


def test_the_page_has_the_numbers_of_the_api(
    console: Console,
    page: Page,
    client: OpenAI,
    database: Database,
    engine: StubEngine,  # noqa: F811 - a fixture
    assert_accessible: Callable[[Page], None],
) -> None:
    add_tuned(database)

    def respond(body: dict[str, Any]) -> Any:
        number, is_tuned = number_asked(body), body["model"] == TUNED
        if number == 139 and is_tuned:
            return refusal()
        knows = number % 4 == 0 if not is_tuned else number % 10 != 0
        return f"Soup {number}." if knows else "Stew."

    engine.respond = respond
    file = upload(client, lines(range(100, 140), metadata={"kitchen": "north"}))
    candidates = [{"type": "base"}, {"type": "prompt", "system": "Cook."}, {"type": "model", "model": TUNED}]
    created = create(client, file=file, candidates=candidates, name="pots")
    found = ended(client, created["id"])
    results = ComparisonResults.model_validate(found["results"])
    open_comparison(console, page, created["id"])

    expect(page.get_by_role("heading", name="Fine-tuning wins")).to_be_visible()
    expect(page.get_by_text(results.verdict.sentence)).to_be_visible()
    assert results.verdict.difference is not None
    expect(page.locator(".verdict")).to_contain_text(f"{signed_points(results.verdict.difference)} points")
    for each in results.candidates:
        at = row(page, "Scores", "fine-tuned" if each.name == TUNED else each.name)
        expect(at).to_contain_text(percent(each.score))
        expect(at).to_contain_text(f"({percent(each.interval.low)} to {percent(each.interval.high)})")
        expect(at.locator("td").nth(1)).to_have_text(str(each.failures))
    promote = page.get_by_role("link", name="Promote")
    assert promote.get_attribute("href") == (
        f"/console/aliases/~promote?model={TUNED.replace(':', '%3A')}&comparison={created['id']}"
    )
    assert_accessible(page)

    pair = next(each for each in results.pairs if {each.a, each.b} == {"prompt", TUNED})
    items = get(client, created["id"], "/items", limit=1000)["data"]
    for show, wanted in (("wins", pair.wins), ("losses", pair.losses), ("ties", pair.ties)):
        seen = read_lines(console, page, created["id"], f"?one={pair.a}&other={pair.b}&show={show}")
        assert len(seen) == wanted
        assert seen == [item["line"] for item in items if outcome(item, pair.a, pair.b) == show]
    assert read_lines(console, page, created["id"], f"?one={TUNED}&other=base&show=failed") == [40]
    expect(page.locator(".reply .problem")).to_have_text(
        "This model's maximum context length is 2048 tokens."
    )

    report = client.get(f"/comparisons/{created['id']}/report", cast_to=str)
    for each in results.candidates:
        assert percent(each.score) in report
    with page.expect_download() as download:
        page.get_by_role("link", name="Download it").click()
    assert results.verdict.sentence in download.value.path().read_text()


def outcome(item: dict[str, Any], one: str, other: str) -> str:
    score = {answer["candidate"]: answer["score"] or 0 for answer in item["answers"]}
    difference = score[one] - score[other]
    return "wins" if difference > 0 else "losses" if difference < 0 else "ties"


def read_lines(console: Console, page: Page, comparison_id: str, query: str) -> list[int]:
    """The lines of all pages, by clicking through them."""
    open_comparison(console, page, comparison_id, query)
    found: list[int] = []
    while True:
        names = [each.get_attribute("aria-label") or "" for each in page.locator("article.asked").all()]
        found += [int(name.removeprefix("Line ")) for name in names]
        following = page.get_by_role("link", name="Next page")
        if not following.count():
            return found
        with page.expect_response(lambda answer: "after=" in answer.url):
            following.click()
        expect(page.get_by_label(names[0], exact=True)).to_have_count(0)


def results_with(code: Any, **verdict: Any) -> ComparisonResults:
    tuned = made.candidate("tuned", model=TUNED, score=0.7)
    prompt = made.candidate("prompt", "prompt", score=0.69)
    found = made.results([prompt, tuned], [made.pair("tuned", "prompt", 0.01, p=0.4)])
    found.verdict = found.verdict.model_copy(
        update={
            "code": code,
            "sentence": "A sentence for a manager.",
            "tuned": "tuned",
            "prompted": "prompt",
            "difference": 0.01,
            "interval": Interval(low=-0.09, high=0.11),
            "p_value": 0.4,
        }
        | verdict
    )
    return found


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("code", "title", "next_step"),
    [
        ("fine_tuning_wins", "Fine-tuning wins", "let an alias point to it"),
        ("prompting_is_enough", "Prompting is enough", "There is no model to train"),
        ("no_difference_shown", "No difference shown", "About 1,200 would show"),
        ("fine_tuning_hurts", "Fine-tuning hurts", "look at what it lost"),
        ("not_enough_data", "Not enough data", "With about 1,200, the comparison can say something"),
    ],
)
def test_each_verdict_is_said_plainly_with_what_to_do_next(
    console: Console, page: Page, database: Database, code: str, title: str, next_step: str
) -> None:
    found = results_with(code, questions_needed=1200)
    open_comparison(console, page, made.add_comparison(database, found))
    expect(page.get_by_role("heading", name=title)).to_be_visible()
    expect(page.locator(".next")).to_contain_text(next_step)
    expect(page.get_by_role("link", name="Promote")).to_have_count(1 if code == "fine_tuning_wins" else 0)
    page.goto(f"{console.url}/comparisons")
    expect(page.get_by_role("cell", name=title)).to_be_visible()


def test_checkpoints_slices_and_general_questions_are_shown(
    console: Console, page: Page, database: Database, assert_accessible: Callable[[Page], None]
) -> None:
    found = results_with("fine_tuning_wins")
    slices = SliceResult(
        key="kitchen", value="north", questions=12, score=0.5, interval=Interval(low=0.2, high=0.8)
    )
    for each in found.candidates:
        each.slices = [slices]
    points = [
        CheckpointPoint(
            model=f"{TUNED}:ckpt-step-{step}",
            step=step,
            score=score,
            interval=Interval(low=score - 0.1, high=score + 0.1),
            is_final=step == 30,
        )
        for step, score in ((10, 0.5), (20, 0.8), (30, 0.7))
    ]
    found.checkpoints = [
        CheckpointCurve(
            job="ftjob-1", points=points, best=points[1].model, overfits=True, sentence="Ship step 20."
        )
    ]
    found.regression = [made.regression("tuned", 0.04)]
    open_comparison(console, page, made.add_comparison(database, found))
    expect(page.get_by_text("Ship step 20.")).to_be_visible()
    expect(page.locator(".curve-mark").first).to_have_text("ship this")
    page.get_by_text("As a table").click()
    expect(page.get_by_role("link", name="ask").nth(1)).to_have_attribute(
        "href", f"/console/playground?model={points[1].model.replace(':', '%3A')}"
    )
    expect(row(page, "Slices", "kitchen: north")).to_contain_text("20.0 % to 80.0 %")
    expect(row(page, "General questions", "90.0 %")).to_contain_text("+4.0")
    assert_accessible(page)


@pytest.mark.one_database
def test_of_two_tabs_the_one_chosen_last_is_shown(console: Console, page: Page, database: Database) -> None:
    open_comparison(console, page, made.add_comparison(database, results_with("prompting_is_enough")))
    requests = HeldRequests(page, "**/console/comparisons/*")
    page.get_by_role("link", name="Failed").click()
    earlier = requests.next()
    page.get_by_role("link", name="All").click()
    later = requests.next()
    for each in (earlier, later):
        each.continue_()
    expect(page).to_have_url(re.compile("show=all"))
    expect(page.get_by_role("link", name="All")).to_have_attribute("aria-current", "true")


@pytest.mark.one_database
def test_hostile_texts_are_only_texts(console: Console, page: Page, database: Database) -> None:
    found = results_with("prompting_is_enough")
    found.verdict.sentence = HOSTILE
    found.candidates[0].name = found.pairs[0].b = found.verdict.prompted = HOSTILE
    comparison_id = made.add_comparison(database, found, name=HOSTILE)
    open_comparison(console, page, comparison_id)
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    assert page.locator("main img, main script, main b").count() == 0
    page.goto(f"{console.url}/comparisons")
    expect(page.get_by_role("link", name="onerror")).to_be_visible()
    expect(page).to_have_title("Comparisons · Toque")


@pytest.mark.one_database
def test_who_may_only_read_is_offered_nothing_else(
    console: Console, stranger: Page, database: Database
) -> None:
    comparison_id = made.add_comparison(database, results_with("fine_tuning_wins"))
    running = made.add_comparison(database, results_with("fine_tuning_wins"), status="running", results=None)
    console.sign_in(stranger, console.key_with_role("read"))
    stranger.goto(f"{console.url}/comparisons")
    expect(stranger.get_by_role("link", name=comparison_id)).to_be_visible()
    expect(stranger.get_by_role("link", name="New comparison")).to_have_count(0)
    open_comparison(console, stranger, comparison_id)
    expect(stranger.locator(".next")).to_contain_text("have somebody promote it")
    open_comparison(console, stranger, running)
    expect(stranger.get_by_role("button", name="Cancel")).to_have_count(0)
    stranger.goto(f"{console.url}/comparisons/new")
    expect(stranger.get_by_text("This needs a key with the role 'train'")).to_be_visible()


def test_another_project_sees_nothing(console: Console, stranger: Page, database: Database) -> None:
    comparison_id = made.add_comparison(database, results_with("fine_tuning_wins"))
    console.sign_in(stranger, console.other_key)
    stranger.goto(f"{console.url}/comparisons")
    expect(stranger.get_by_role("heading", name="No comparison yet")).to_be_visible()
    open_comparison(console, stranger, comparison_id)
    expect(stranger.get_by_text(f"No comparison '{comparison_id}'")).to_be_visible()


@pytest.mark.one_database
@pytest.mark.parametrize("path", ["/comparisons", "/comparisons/new", "/comparisons/{}", "/playground"])
def test_small_screens_do_not_scroll_sideways(
    console: Console, page: Page, database: Database, path: str
) -> None:
    add_tuned(database)
    comparison_id = made.add_comparison(database, results_with("fine_tuning_wins"))
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(console.url + path.format(comparison_id))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360

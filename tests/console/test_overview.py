"""The first page: what there is to do next, for whoever looks at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.auth.models import Project
from app.comparisons.results import Interval, Verdict
from app.core.database import Database
from app.files.models import File
from app.fine_tuning.models import FineTuningJob
from app.models.aliases.models import Alias
from tests.console.conftest import Console
from tests.console.test_events import point_alias
from tests.support.aliases import add_model
from tests.support.comparison_results import add_comparison, results
from tests.support.service import BASE_MODEL

HOSTILE = "<img src=x onerror=document.title='owned'><b>soup</b>"


def add_job(database: Database, id_: str, project: str = "default", **columns: Any) -> None:
    with database.writer() as session:
        owner = session.query(Project).filter_by(name=project).one()
        file = File(
            project_id=owner.id,
            filename="menu.jsonl",
            purpose="fine-tune",
            bytes=1,
            sha256="0",
            storage_key="t",
            status="processed",
        )
        session.add(file)
        session.flush()
        row = {"model": BASE_MODEL, "method": "supervised", "hyperparameters": {}, "seed": 1} | columns
        session.add(FineTuningJob(id=id_, project_id=owner.id, training_file_id=file.id, **row))


def add_wins(database: Database, name: str, project: str = "default") -> str:
    found = results([], [])
    found.verdict = Verdict(
        code="fine_tuning_wins",
        sentence=f"{name} answers 65 points better.",
        difference=0.65,
        interval=Interval(low=0.57, high=0.73),
        questions=80,
    )
    return add_comparison(database, found, project, name=name)


@pytest.mark.one_database
def test_a_newcomer_is_told_what_to_do_first(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    page.goto(console.url)
    first = page.get_by_role("listitem").filter(has_text="Upload examples")
    expect(first).to_have_attribute("aria-current", "step")
    assert_accessible(page)

    page.get_by_role("button", name="Use the demo's dataset").click()
    page.goto(console.url)
    expect(page.get_by_role("listitem").filter(has_text="Done: Upload examples")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="Train")).to_have_attribute("aria-current", "step")
    with console.service.client() as client:
        files = client.files.list(purpose="fine-tune").data
    assert sorted(file.filename for file in files) == ["demo-heldout.jsonl", "demo-training.jsonl"]


def test_what_goes_on_is_shown(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    page.goto(console.url)
    for number in range(6):
        add_job(console.database, f"ftjob-old{number}", status="failed", created_at=1000.0 + number)
    add_job(console.database, "ftjob-running", status="running", suffix=HOSTILE, created_at=1.0)
    model, second = (add_model(console.database, suffix) for suffix in ("house-style", "house-style-v2"))
    add_wins(console.database, HOSTILE)
    with console.database.writer() as session:
        owner = session.query(Project).filter_by(name="default").one()
        split: list[Any] = [{"model": model, "weight": 3.0}, {"model": second, "weight": 1.0}]
        session.add(Alias(project_id=owner.id, name="menu:production", split=split, version=1))

    jobs = page.get_by_role("region", name="Jobs").get_by_role("row")
    expect(jobs).to_have_count(6)  # with the head
    expect(jobs.nth(1)).to_contain_text(HOSTILE)
    expect(jobs.nth(1)).to_contain_text("running")
    expect(jobs.nth(2)).to_contain_text("ftjob-old5")
    won = page.get_by_role("listitem").filter(has_text="Fine-tuning wins")
    expect(won).to_contain_text("answers 65 points better.")
    expect(won).to_contain_text("+65.0 points (+57.0 to +73.0)")
    aliases = page.get_by_role("region", name="Aliases")
    expect(aliases).to_contain_text(model)
    expect(aliases).to_contain_text("75 %")
    expect(aliases).to_contain_text("25 %")
    assert page.title() == "Overview · Toque"
    assert_accessible(page)
    page.emulate_media(color_scheme="dark")
    assert_accessible(page)


@pytest.mark.one_database
def test_tables_fit_a_laptop(console: Console, page: Page) -> None:
    model = add_model(console.database, "house-style")
    add_job(
        console.database,
        "ftjob-1",
        status="succeeded",
        suffix="one-word-after-another",
        fine_tuned_model=model,
    )
    page.set_viewport_size({"width": 1280, "height": 800})
    for path in ("", "/jobs"):
        page.goto(console.url + path)
        expect(page.get_by_text("one-word-after-another")).to_be_visible()
        widths = "found => found.map((each) => each.scrollWidth - each.clientWidth)"
        assert set(page.locator(".table").evaluate_all(widths)) == {0}, path


@pytest.mark.one_database
def test_nothing_scrolls_sideways_on_a_phone(console: Console, page: Page) -> None:
    page.goto(console.url)
    add_job(console.database, "ftjob-" + "x" * 50, status="running", suffix="y" * 64)
    add_wins(console.database, "z" * 200)
    page.set_viewport_size({"width": 360, "height": 740})
    expect(page.get_by_text("y" * 64)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.get_by_role("link", name="Overview")).to_be_visible()


@pytest.mark.one_database
def test_projects_see_nothing_of_each_other(console: Console, stranger: Page) -> None:
    add_job(console.database, "ftjob-mine", status="running", suffix="secret-soup")
    add_wins(console.database, "secret comparison")
    console.sign_in(stranger, console.other_key)
    stranger.goto(console.url)
    expect(stranger.get_by_role("heading", name="Four steps to a model of your own")).to_be_visible()
    assert "secret" not in stranger.content()


@pytest.mark.one_database
def test_a_key_that_only_asks_sees_nothing_of_how_models_are_made(console: Console, stranger: Page) -> None:
    add_job(console.database, "ftjob-mine", status="running", suffix="secret-soup")
    console.sign_in(stranger, console.key_with_role("inference"))
    stranger.goto(console.url)
    expect(stranger.get_by_role("heading", name="Ask a model")).to_be_visible()
    assert "secret-soup" not in stranger.content()
    links = stranger.get_by_role("navigation", name="Console").get_by_role("link").all_inner_texts()
    assert links == ["Overview", "Playground"]
    for path in ("datasets", "jobs", "comparisons", "models", "aliases", "operations"):
        answer = stranger.goto(f"{console.url}/{path}")
        assert answer is not None
        assert answer.status == 403, path


@pytest.mark.one_database
def test_a_key_that_only_reads_is_offered_no_change(console: Console, stranger: Page) -> None:
    console.sign_in(stranger, console.key_with_role("read"))
    stranger.goto(console.url)
    expect(stranger.get_by_role("heading", name="Upload examples")).to_be_visible()
    expect(stranger.get_by_role("button", name="Use the demo's dataset")).to_have_count(0)
    expect(stranger.get_by_role("link", name="Upload a file")).to_have_count(0)
    refused = stranger.evaluate(
        "toque.fetch('/console/datasets/demo', {method: 'POST'}).then(answer => answer.status)"
    )
    assert refused == 403


@pytest.mark.one_database
def test_the_keyboard_reaches_everything(console: Console, page: Page) -> None:
    page.goto(console.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    focused = page.locator("main .is-next").locator(":is(a, button):focus")
    expect(focused).to_have_count(1)
    point_alias(console.database, "menu:production")
    expect(page.get_by_text("menu:production")).to_be_visible()  # what changes does not take the focus away
    expect(focused).to_have_count(1)


@pytest.mark.one_database
def test_a_page_without_data_weighs_little(console: Console, stranger: Page) -> None:
    weights: dict[str, int] = {}
    stranger.on("response", lambda answer: weights.update({answer.url: len(answer.body())}))
    console.sign_in(stranger)
    stranger.goto(console.url)
    expect(stranger.get_by_role("heading", name="Overview")).to_be_visible()
    assert sum(weights.values()) < 150_000, weights

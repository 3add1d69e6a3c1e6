"""Aliases in a browser: where they point, what they were asked, and how they move there and back."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx2
import pytest
from playwright.sync_api import Page, expect

from app.auth.models import Project
from app.models.aliases.models import Alias
from app.usage import folding
from app.usage.models import AliasUsage, Sums
from tests.console.conftest import Console
from tests.console.test_session import csrf_token
from tests.support.aliases import NAME, add_model, put
from tests.support.browser import follow
from tests.support.lineage import add_lineage
from tests.support.service import OTHER_KEY

HOSTILE = '<img src=x onerror="document.title=1">{{7*7}}'
A_DAY = 86400


def address(console: Console, name: str = NAME) -> str:
    return f"{console.url}/aliases/{name}"


def add_requests(console: Console, counts: dict[tuple[str, float], int], project: str = "default") -> None:
    """Count requests that named the alias, by model and by how many seconds ago that was."""
    now = time.time()
    with console.database.writer() as session:
        project_id = session.query(Project).filter_by(name=project).one().id
        counted = {
            (project_id, int(now - age) // 60 * 60, model, NAME): Sums(count, count, count)
            for (model, age), count in counts.items()
        }
        folding.add_usage(session, counted, AliasUsage)


def moved_ago(console: Console, seconds: float) -> None:
    with console.database.writer() as session:
        session.query(Alias).filter_by(name=NAME).one().updated_at = time.time() - seconds


def test_an_alias_is_created_split_and_rolled_back(
    console: Console, page: Page, http: httpx2.Client, assert_accessible: Callable[[Page], None]
) -> None:
    made = add_lineage(console.database)
    page.goto(f"{console.url}/aliases")
    assert_accessible(page)
    follow(page.get_by_role("link", name="Create the first alias"))
    page.get_by_label("Name").fill("House Style")
    page.get_by_label("Model 1").fill(made.first)
    follow(page.get_by_role("button", name="Create it"))
    expect(page.get_by_role("alert").filter(has_text="small letters")).to_be_visible()
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("Why").fill("the first release")
    assert_accessible(page)
    follow(page.get_by_role("button", name="Create it"))
    page.wait_for_url(address(console))
    expect(page.get_by_role("status").filter(has_text="Version 1")).to_be_visible()

    follow(page.get_by_role("link", name="Move or split…"))
    page.get_by_label("Model 2").fill(made.second)
    page.get_by_label("Weight 1").fill("90")
    follow(page.get_by_role("button", name="Move it"))
    expect(page.get_by_text("The weight of model 2 is to be a number above 0")).to_be_visible()
    page.get_by_label("Weight 2").fill("10")
    follow(page.get_by_role("button", name="Move it"))
    page.wait_for_url(address(console))
    assert [share["weight"] for share in http.get(f"/v1/aliases/{NAME}").json()["split"]] == [90, 10]
    expect(page.get_by_role("row", name="90 %")).to_contain_text(":house-style:a1")

    follow(page.get_by_role("link", name="Roll back…"))
    confirmation = page.locator("form.confirm")
    expect(confirmation).to_contain_text("as of version 1")
    expect(confirmation.locator(".move")).to_contain_text("10 %")
    assert_accessible(page)
    page.get_by_label("Why").fill("complaints")
    follow(page.get_by_role("button", name="Roll back now"))
    page.wait_for_url(address(console))
    alias = http.get(f"/v1/aliases/{NAME}").json()
    assert (alias["model"], alias["version"]) == (made.first, 3)
    changes = page.get_by_role("region", name="History").get_by_role("listitem").filter(has_text="version")
    expect(changes.nth(0)).to_contain_text("Rolled back to version 1")
    expect(changes.nth(0)).to_contain_text("complaints")
    expect(changes.nth(0)).to_contain_text("by TOQUE_API_KEY")
    assert_accessible(page)
    logs = http.get("/v1/organization/audit_logs", params={"event_types[]": "alias.updated"}).json()["data"]
    assert [log["actor"]["type"] for log in logs] == ["api_key", "api_key"]

    follow(page.get_by_role("link", name="Roll back…"))
    expect(page.get_by_text("there is nothing to roll back to")).to_be_visible()


@pytest.mark.one_database
def test_a_stale_version_is_told_and_nothing_moves(console: Console, page: Page, http: httpx2.Client) -> None:
    first, second = (add_model(console.database, suffix) for suffix in ("first", "second"))
    put(http, model=first)
    page.goto(address(console) + "/move")
    put(http, model=second, version=1)
    page.get_by_label("Model 1").fill(first)
    with page.expect_response("**/move") as answer:
        follow(page.get_by_role("button", name="Move it"))
    assert answer.value.status == 409
    expect(page.get_by_role("alert").filter(has_text="It was moved meanwhile, look again.")).to_be_visible()
    expect(page.get_by_text("Points now to (version 2)")).to_be_visible()
    assert http.get(f"/v1/aliases/{NAME}").json()["model"] == second

    page.goto(address(console) + "/rollback")
    put(http, model=first, version=2)
    follow(page.get_by_role("button", name="Roll back now"))
    expect(page.get_by_role("alert").filter(has_text="It was moved meanwhile")).to_be_visible()
    page.goto(address(console) + "/delete")
    put(http, model=second, version=3)
    follow(page.get_by_role("button", name="Delete it"))
    expect(page.get_by_role("alert").filter(has_text="It was moved meanwhile")).to_be_visible()
    follow(page.get_by_role("button", name="Delete it"))
    expect(page.get_by_text("It was deleted.")).to_be_visible()
    expect(page.get_by_role("region", name="History")).to_contain_text("version 5")
    assert http.get(f"/v1/aliases/{NAME}").status_code == 404


@pytest.mark.one_database
def test_a_rollback_to_what_is_gone_is_not_offered(console: Console, page: Page, http: httpx2.Client) -> None:
    first, second = (add_model(console.database, suffix) for suffix in ("first", "second"))
    put(http, model=first)
    put(http, model=second, version=1)
    assert http.delete(f"/v1/models/{first}").status_code == 200
    page.goto(address(console) + "/rollback")
    expect(page.locator(".problem")).to_contain_text("does not exist")
    expect(page.get_by_role("button", name="Roll back now")).to_have_count(0)


def test_traffic_is_shown_as_set_and_as_measured(
    console: Console, page: Page, http: httpx2.Client, assert_accessible: Callable[[Page], None]
) -> None:
    first, second, old = (add_model(console.database, suffix) for suffix in ("first", "second", "old"))
    put(http, model=old)
    put(http, split=[{"model": first, "weight": 9}, {"model": second, "weight": 1}], version=1)
    page.goto(address(console))
    expect(page.get_by_text("No request has named it since it was moved")).to_be_visible()
    moved_ago(console, 2 * 3600)
    add_requests(
        console,
        {(first, 600): 88, (second, 600): 12, (old, 3 * 3600): 50, (old, 2 * A_DAY): 1000},
    )
    page.reload()
    table = page.get_by_role("region", name="Where it points")
    expect(table.get_by_role("row", name="90 %")).to_contain_text("88.0 %")
    expect(table.get_by_role("row", name="10 %")).to_contain_text("12.0 %")
    expect(page.get_by_text("Of 100 requests that named it since it was moved")).to_be_visible()
    chart = page.get_by_role("region", name="What it was asked")
    assert chart.locator("svg[role=img] rect[fill]").count() == 3
    assert not [title for title in chart.locator("title").all_text_contents() if "UTC" in title]
    expect(chart.locator(".legend")).to_contain_text("50")
    chart.get_by_text("The same as a table").click()
    expect(chart.get_by_role("cell", name="88")).to_be_visible()
    assert_accessible(page)
    page.goto(f"{console.url}/aliases")
    expect(page.get_by_role("row").filter(has_text="88.0 %")).to_contain_text("90 %")
    assert_accessible(page)


@pytest.mark.one_database
def test_a_page_follows_what_others_do(console: Console, page: Page, http: httpx2.Client) -> None:
    first, second = (add_model(console.database, suffix) for suffix in ("first", "second"))
    put(http, model=first)
    page.goto(address(console))
    expect(page.get_by_role("region", name="Where it points").get_by_title(first)).to_be_visible()
    put(http, model=second, version=1, reason="from elsewhere")
    expect(page.get_by_role("region", name="Where it points").get_by_title(second)).to_be_visible()
    expect(page.get_by_text("from elsewhere")).to_be_visible()


def test_a_long_history_is_paged(console: Console, page: Page, http: httpx2.Client) -> None:
    first, second = (add_model(console.database, suffix) for suffix in ("first", "second"))
    put(http, model=first)
    for version in range(1, 25):
        put(http, model=second if version % 2 else first, version=version)
    page.goto(address(console))
    follow(page.get_by_role("link", name="Older"))
    expect(page.get_by_text("version 1 ·")).to_be_visible()
    follow(page.get_by_role("link", name="Newest"))
    expect(page.get_by_text("version 25 ·")).to_be_visible()


@pytest.mark.one_database
def test_projects_and_roles(console: Console, page: Page, http: httpx2.Client) -> None:
    put(http, model=add_model(console.database, "first"))
    add_requests(console, {("theirs", 600): 7777}, "other")
    with console.service.http(OTHER_KEY) as other:
        put(other, "secret:sauce", model=add_model(console.database, "theirs", "other"))
    page.goto(f"{console.url}/aliases")
    expect(page.get_by_role("link", name=NAME)).to_be_visible()
    expect(page.get_by_text("secret:sauce")).to_have_count(0)
    expect(page.get_by_text("7,777")).to_have_count(0)
    for path in ("", "/now", "/move", "/rollback", "/delete"):
        response = page.goto(address(console, "secret:sauce") + path)
        assert response is not None and response.status == 404, path
    page.context.clear_cookies()
    console.sign_in(page, console.key_with_role("read"))
    page.goto(address(console))
    expect(page.get_by_role("region", name="Where it points")).to_be_visible()
    for name in ("Move or split…", "Roll back…", "Promote a model…", "Delete…"):
        expect(page.get_by_role("link", name=name)).to_have_count(0)
    for path in ("/move", "/rollback", "/delete"):
        response = page.goto(address(console) + path)
        assert response is not None and response.status == 403, path
    refused = page.request.post(address(console) + "/delete", form={"version": "1"})
    assert refused.status == 403
    assert http.get(f"/v1/aliases/{NAME}").status_code == 200


@pytest.mark.one_database
def test_hostile_texts_are_text_and_nothing_is_too_wide(
    console: Console, page: Page, http: httpx2.Client, assert_accessible: Callable[[Page], None]
) -> None:
    first, second = (add_model(console.database, "x" * 60 + suffix) for suffix in ("first", "second"))
    put(http, model=first, reason=HOSTILE)
    put(
        http, split=[{"model": first, "weight": 1}, {"model": second, "weight": 2}], version=1, reason=HOSTILE
    )
    add_requests(console, {(first, 3600): 5, (HOSTILE, 3600): 9})
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("", "/move", "/rollback", "/delete"):
        page.goto(address(console) + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        assert_accessible(page)
    page.goto(f"{console.url}/aliases")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.goto(address(console))
    expect(page.get_by_text(HOSTILE).first).to_be_visible()
    assert page.locator("main img").count() == 0
    assert page.title() != "1"


@pytest.mark.one_database
def test_a_rollback_by_keyboard_alone(console: Console, page: Page, http: httpx2.Client) -> None:
    first, second = (add_model(console.database, suffix) for suffix in ("first", "second"))
    put(http, model=first)
    put(http, model=second, version=1)
    page.goto(address(console))
    page.get_by_role("link", name="Roll back…").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/rollback")
    page.get_by_label("Why").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(address(console))
    assert http.get(f"/v1/aliases/{NAME}").json()["model"] == first


@pytest.mark.one_database
def test_an_alias_may_be_called_as_a_page_is(console: Console, page: Page, http: httpx2.Client) -> None:
    model = add_model(console.database, "style")
    for name in ("promote", "new"):
        put(http, name, model=model)
        page.goto(address(console, name))
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        follow(page.get_by_role("link", name="Promote a model"))
        expect(page.get_by_label("Alias", exact=True)).to_have_value(name)


@pytest.mark.one_database
def test_a_reason_for_a_rollback_may_have_any_character(console: Console, http: httpx2.Client) -> None:
    made = add_lineage(console.database)
    put(http, split=[{"model": made.first, "weight": 1}])
    put(http, split=[{"model": made.second, "weight": 1}], version=1)
    with console.service.http(None) as browser:
        browser.post("/console/sign-in", data={"api_key": console.key})
        entered = {"reason": "too\0 soon", "csrf_token": csrf_token(browser)}
        answer = browser.post(f"/console/aliases/{NAME}/rollback", data=entered)
        assert answer.status_code == 303, answer.text
        assert "too soon" in browser.get(f"/console/aliases/{NAME}").text

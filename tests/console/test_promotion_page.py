"""Promotions in a browser: what a gate's rules come to, one by one, and the move that they allow."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

import httpx2
import pytest
from playwright.sync_api import Page, expect

from app.models.aliases.models import Alias
from tests.console.conftest import Console
from tests.support.aliases import NAME, put
from tests.support.browser import follow
from tests.support.comparison_results import add_comparison, candidate, results
from tests.support.lineage import Lineage, add_lineage


@pytest.fixture
def made(console: Console) -> Lineage:
    return add_lineage(console.database)


def open_form(console: Console, page: Page, **query: str) -> None:
    page.goto(f"{console.url}/aliases/~promote?{urlencode(query)}")


def test_a_promotion_is_refused_rule_by_rule_then_allowed(
    console: Console,
    page: Page,
    http: httpx2.Client,
    made: Lineage,
    assert_accessible: Callable[[Page], None],
) -> None:
    put(http, model=made.first)
    open_form(console, page, model=made.second, comparison=made.comparison)
    expect(page.get_by_label("Model", exact=True)).to_have_value(made.second)
    expect(page.get_by_label("Comparison", exact=True)).to_have_value(made.comparison)
    expect(page.get_by_label("Comparison", exact=True)).not_to_contain_text("UTC")
    expect(page.get_by_role("checkbox", name="Beats every prompt")).to_be_checked()
    expect(page.get_by_label("Loses on general questions at most")).to_have_value("5")
    page.get_by_label("Alias", exact=True).fill(NAME)
    page.get_by_label("Scores at least").fill("97")
    follow(page.get_by_role("button", name="Check the rules"))

    decision = page.get_by_role("region", name="the gate says no")
    rules = decision.locator(".rule")
    expect(rules).to_have_count(4)
    expect(rules.nth(0)).to_contain_text("failed")
    expect(rules.nth(0)).to_contain_text("tuned scores 86.0 %")
    expect(rules.nth(1)).to_contain_text("passed")
    expect(rules.nth(1)).to_contain_text("Beats every prompt without fine-tuning")
    expect(rules.nth(2)).to_contain_text("not shown")
    expect(rules.nth(2)).to_contain_text("+4.0 points against older")
    expect(rules.nth(2)).to_contain_text("more of them might")
    expect(rules.nth(3)).to_contain_text("passed")
    expect(page.get_by_role("button", name="Promote it")).to_have_count(0)
    assert_accessible(page)
    page.reload()  # the refusal has an address
    expect(decision).to_contain_text("2 of 4 rules do not hold")
    assert http.get(f"/v1/aliases/{NAME}").json()["version"] == 1

    page.get_by_label("Scores at least").fill("80")
    page.get_by_role("checkbox", name="Beats what the alias points to now").uncheck()
    follow(page.get_by_role("button", name="Check again"))
    decision = page.get_by_role("region", name="the gate says yes")
    expect(decision.locator(".rule").nth(0)).to_contain_text("chance alone may be why")
    expect(decision.locator(".move")).to_contain_text(":house-style-v2:b2")
    assert_accessible(page)
    page.get_by_label("Why").fill("proven on held-out questions")
    follow(page.get_by_role("button", name="Promote it"))
    page.wait_for_url(f"**/console/aliases/{NAME}")
    alias = http.get(f"/v1/aliases/{NAME}").json()
    assert (alias["model"], alias["version"]) == (made.second, 2)
    change = page.get_by_role("region", name="History").locator(".change").first
    expect(change).to_contain_text("Promoted by a gate")
    expect(change).to_contain_text("proven on held-out questions")
    change.get_by_text("3 rules, all passed").click()
    expect(change.get_by_text("Scores at least 80 %")).to_be_visible()


@pytest.mark.one_database
def test_rules_fit_the_comparison_that_is_chosen_in_the_form(
    console: Console, page: Page, made: Lineage
) -> None:
    open_form(console, page)
    expect(page.get_by_role("checkbox", name="Beats the base model")).to_be_checked()
    page.get_by_label("Alias", exact=True).fill(NAME)
    page.get_by_label("Comparison", exact=True).select_option(made.comparison)
    expect(page.get_by_role("checkbox", name="Beats every prompt")).to_be_checked()
    expect(page.get_by_role("checkbox", name="Beats the base model")).not_to_be_checked()
    expect(page.get_by_label("Loses on general questions at most")).to_have_value("5")
    expect(page.get_by_label("Alias", exact=True)).to_have_value(NAME)


@pytest.mark.one_database
def test_an_alias_that_moved_meanwhile_is_looked_at_again(
    console: Console, page: Page, http: httpx2.Client, made: Lineage
) -> None:
    put(http, model=made.first)
    rules = {"check": "1", "beats_prompted": "on"}
    open_form(console, page, alias=NAME, model=made.second, comparison=made.comparison, **rules)
    put(http, model=made.imported, version=1)
    with page.expect_response("**/~promote") as answer:
        follow(page.get_by_role("button", name="Promote it"))
    assert answer.value.status == 409
    expect(page.get_by_role("alert").filter(has_text="It was moved meanwhile, look again.")).to_be_visible()
    expect(page.locator(".decision .move")).to_contain_text(":imported-tone:c3")
    follow(page.get_by_role("button", name="Promote it"))
    page.wait_for_url(f"**/console/aliases/{NAME}")
    assert http.get(f"/v1/aliases/{NAME}").json()["version"] == 3


@pytest.mark.one_database
def test_a_gate_that_says_no_meanwhile_shows_its_rules(
    console: Console, page: Page, http: httpx2.Client, made: Lineage
) -> None:
    rules = {"check": "1", "beats_current": "on"}
    open_form(console, page, alias=NAME, model=made.second, comparison=made.comparison, **rules)
    expect(page.locator(".rule")).to_contain_text("nothing to beat")
    put(http, model=made.first)
    follow(page.get_by_role("button", name="Promote it"))
    page.get_by_role("button", name="Check again").wait_for()
    expect(page.get_by_role("region", name="the gate says no").locator(".rule")).to_contain_text("not shown")
    assert http.get(f"/v1/aliases/{NAME}").json()["model"] == made.first


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({"min_score": "1000"}, "Give a number from 0 to 100."),
        ({"min_score": "lots"}, "'lots' is no number."),
        ({"max_latency_ratio": "-1"}, "greater than 0"),
        ({}, "A gate needs a rule"),
        ({"beats_base": "on", "comparison": "cmp_none"}, "No comparison"),
        ({"beats_base": "on", "model": "ft:none"}, "does not exist"),
        ({"beats_base": "on", "alias": "Not A Name"}, "small letters"),
        ({"beats_base": "on", "alias": ""}, "Name the alias"),
    ],
)
def test_what_is_wrong_is_told_beside_the_form(
    console: Console, page: Page, made: Lineage, query: dict[str, str], problem: str
) -> None:
    whole = {"check": "1", "alias": NAME, "model": made.second, "comparison": made.comparison}
    open_form(console, page, **whole | query)
    expect(page.get_by_role("alert").filter(has_text="Nothing was changed.")).to_contain_text(problem)
    expect(page.get_by_label("Model", exact=True)).to_have_value((whole | query)["model"])


@pytest.mark.one_database
def test_two_projects_and_roles(console: Console, page: Page, made: Lineage) -> None:
    foreign = add_comparison(
        console.database, results([candidate("base", "base")], []), "other", name="secret sauce"
    )
    open_form(console, page, comparison=foreign)
    expect(page.get_by_label("Comparison", exact=True)).to_have_value("")
    expect(page.get_by_text("secret sauce")).to_have_count(0)
    page.context.clear_cookies()
    console.sign_in(page, console.key_with_role("train"))
    response = page.goto(f"{console.url}/aliases/~promote")
    assert response is not None and response.status == 403


def test_the_form_is_shown_while_somebody_writes(console: Console, page: Page, made: Lineage) -> None:
    with console.database.writer() as session:
        session.query(Alias).filter_by(name=NAME).update({"updated_at": 1.0})
        open_form(console, page, comparison=made.comparison, model=made.second)
        expect(page.get_by_label("Comparison", exact=True)).to_have_value(made.comparison)


@pytest.mark.one_database
def test_a_small_screen_is_enough(console: Console, page: Page, made: Lineage) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    rules = {"check": "1", "beats_prompted": "on", "beats_base": "on", "min_score": "95"}
    open_form(console, page, alias=NAME, model=made.second, comparison=made.comparison, **rules)
    expect(page.locator(".rule")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360

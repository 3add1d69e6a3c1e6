"""Models in a browser: the list of them, where one comes from, what it scored, and its end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import Engine, event

from app.core.settings import Settings
from app.models.adapters.validation import module_shapes
from tests.console.conftest import Console
from tests.support.aliases import put
from tests.support.browser import follow
from tests.support.lineage import add_lineage, add_models
from tests.support.peft_folder import send, tensors, write_adapter
from tests.support.service import BASE_MODEL, OTHER_KEY

HOSTILE = '<img src=x onerror="document.title=1">{{7*7}}'


def address(console: Console, name: str) -> str:
    return f"{console.url}/models/{quote(name)}"


def stages(page: Page) -> dict[str, list[str]]:
    """The titles of the lineage's stages, each with the names in it, as a screen reader goes through them."""
    found: dict[str, list[str]] = {}
    for stage in page.get_by_role("list", name="Lineage").locator("> li").all():
        nodes = stage.locator("> ul > li > .node").all()
        found[stage.locator(".stage-title").inner_text()] = [name_in(node) for node in nodes]
    return found


@contextmanager
def counting_statements() -> Iterator[list[str]]:
    """The queries that the service sends while the block runs, those of its background among them."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("SELECT", "WITH")):
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield statements
    event.remove(Engine, "before_cursor_execute", note)


def name_in(node: Locator) -> str:
    name = node.locator("> .name, > .node-name, > a").first
    return (name.text_content() or "").strip()


def test_lineage_shows_what_is_there(
    console: Console, page: Page, http: httpx2.Client, assert_accessible: Callable[[Page], None]
) -> None:
    made = add_lineage(console.database)
    put(http, "tone:live", split=[{"model": made.second, "weight": 1}, {"model": made.first, "weight": 3}])
    put(http, "tone:early", model=made.checkpoint(225))

    page.goto(address(console, made.second))
    newest = [f"Step {step}" for step in range(100, 226, 25)]
    assert stages(page) == {
        "Begins with": [made.first, "house-style-answers.jsonl", "house-style-answers.jsonl"],
        "Training": ["house-style-v2"],
        "Checkpoints": [*newest, "All checkpoints of the job"],
        "Model": [made.second],
        "Used by": ["tone:live", "tone:early"],
    }
    lineage = page.get_by_role("list", name="Lineage")
    expect(lineage).to_contain_text("1,656 examples")
    expect(lineage).to_contain_text("184 examples")
    expect(lineage).to_contain_text("25 % of its traffic")
    expect(lineage).to_contain_text("100 % of its traffic, by step 225")
    expect(lineage.get_by_role("list", name="Before that")).to_contain_text(BASE_MODEL)
    expect(lineage.locator("[aria-current]")).to_contain_text("(this page)")
    expect(page.get_by_text("differ by 0.0031 nats on average, and 0.0200 are accepted")).to_be_visible()
    assert_accessible(page)

    follow(lineage.get_by_role("link", name="Step 225"))
    expect(page.get_by_role("heading", level=1)).to_have_text(made.checkpoint(225))
    follow(page.get_by_role("list", name="Lineage").get_by_title(made.first))
    assert stages(page) == {
        "Begins with": [BASE_MODEL, "house-style-answers.jsonl", "house-style-held-out.jsonl"],
        "Training": ["house-style"],
        "Checkpoints": ["Step 20", "Step 40"],
        "Model": [made.first],
        "Used by": ["tone:live", made.second],
    }
    page.goto(address(console, made.imported))
    assert stages(page) == {
        "Begins with": [BASE_MODEL],
        "Training": ["Trained elsewhere"],
        "Model": [made.imported],
    }


def test_an_older_checkpoint_is_in_its_own_lineage(console: Console, page: Page) -> None:
    made = add_lineage(console.database)
    page.goto(address(console, made.checkpoint(25)))
    assert "Step 25" in stages(page)["Checkpoints"]
    expect(page.get_by_role("list", name="Lineage").locator("[aria-current]")).to_contain_text("Step 25")


@pytest.mark.one_database
def test_scores_lead_to_a_promotion(console: Console, page: Page) -> None:
    made = add_lineage(console.database)
    page.goto(address(console, made.second))
    score = page.get_by_role("region", name="What it scored").get_by_role("listitem")
    expect(score).to_contain_text("86.0 %")
    expect(score).to_contain_text("(76.0 % to 96.0 %)")
    expect(score).to_contain_text("8 examples, the best without fine-tuning")
    expect(score).to_contain_text("+39.0 points (+30.0 to +48.0)")
    follow(score.get_by_role("link", name="Promote…"))
    expect(page.get_by_label("Model", exact=True)).to_have_value(made.second)
    expect(page.get_by_label("Comparison", exact=True)).to_have_value(made.comparison)
    page.goto(address(console, made.imported))
    expect(page.get_by_text("Not compared yet")).to_be_visible()


@pytest.mark.one_database
def test_quarantine_says_why(console: Console, page: Page, assert_accessible: Callable[[Page], None]) -> None:
    made = add_lineage(console.database)
    page.goto(f"{console.url}/models")
    expect(page.get_by_role("row", name="lora_B has NaN")).to_contain_text("quarantined")
    page.goto(address(console, made.broken))
    expect(page.get_by_text("Quarantined: it is not served.")).to_be_visible()
    expect(page.get_by_role("link", name="Ask it")).to_have_count(0)
    page.get_by_role("button", name="Check its files again").click()
    expect(page.get_by_text("It could not be checked now")).to_be_visible()
    assert_accessible(page)


@pytest.mark.one_database
def test_an_import_is_checked_and_downloaded(
    console: Console, page: Page, http: httpx2.Client, settings: Settings, tmp_path: Path
) -> None:
    shapes = module_shapes(settings.models_dir / BASE_MODEL)
    first = {name: shape for name, shape in shapes.items() if name.startswith("model.layers.0.")}
    name = send(http, write_adapter(tmp_path / "adapter", tensors(first))).json()["id"]
    page.goto(address(console, name))
    expect(page.get_by_text("rank 4, alpha 8")).to_be_visible()
    page.get_by_role("button", name="Check its files again").click()
    expect(page.get_by_text("Its files are as they should be.")).to_be_visible()
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download").click()
    assert downloading.value.suggested_filename.endswith(".tar")


def test_a_model_is_deleted_once_no_alias_needs_it(console: Console, page: Page, http: httpx2.Client) -> None:
    made = add_lineage(console.database)
    put(http, "tone:live", model=made.first)
    page.goto(address(console, made.first))
    follow(page.get_by_role("link", name="Delete…"))
    expect(page.get_by_text("Point tone:live elsewhere first.")).to_be_visible()
    expect(page.get_by_role("button", name="Delete it")).to_have_count(0)
    put(http, "tone:live", model=made.imported, version=1)

    page.reload()
    put(http, "tone:live", model=made.first, version=2)  # meanwhile
    follow(page.get_by_role("button", name="Delete it"))
    expect(page.get_by_role("alert").filter(has_text="It was not deleted.")).to_contain_text("tone:live")
    put(http, "tone:live", model=made.imported, version=3)
    page.goto(address(console, made.first) + "/delete")
    follow(page.get_by_role("button", name="Delete it"))
    page.wait_for_url(f"{console.url}/models")
    expect(page.locator("a[title]")).to_have_count(3)
    expect(page.locator(f"a[title='{made.first}']")).to_have_count(0)
    assert http.get(f"/v1/models/{made.first}").status_code == 404
    logs = http.get("/v1/organization/audit_logs", params={"event_types[]": "adapter.deleted"}).json()["data"]
    assert [log["actor"]["type"] for log in logs] == ["api_key"]


@pytest.mark.one_database
def test_a_name_that_is_copied_is_whole_and_on_one_line(console: Console, page: Page) -> None:
    made = add_lineage(console.database)
    page.context.grant_permissions(["clipboard-read"], origin=console.service.url)
    page.goto(f"{console.url}/models")
    row = page.get_by_role("row").filter(has=page.get_by_title(made.second)).first
    row.evaluate("row => getSelection().selectAllChildren(row)")
    page.keyboard.press("ControlOrMeta+c")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert made.second in copied.splitlines()[0]


def test_a_thousand_models_are_paged_and_searched(console: Console, page: Page) -> None:
    add_models(console.database, 1000)
    with counting_statements() as statements:
        page.goto(f"{console.url}/models")
    assert len([each for each in statements if re.search("FROM (adapters|aliases)", each)]) == 3, statements
    names = page.locator("#list tbody th > a.name")
    expect(names).to_have_count(25)
    expect(names.first).to_have_text(re.compile(":many-999:m999$"))
    follow(page.get_by_role("link", name="Older"))
    expect(names.first).to_have_text(re.compile(":many-974:m974$"))
    page.get_by_label("Name contains").fill("many-41%")
    expect(page.get_by_text("Nothing found")).to_be_visible()
    page.get_by_label("Name contains").fill("MANY-417")
    expect(names).to_have_count(1)
    expect(page).to_have_url(re.compile("search=MANY-417"))
    page.get_by_label("Show").select_option("Checkpoints")
    expect(names).to_have_text([re.compile(":many-417:m417:ckpt-step-1$")])


@pytest.mark.one_database
def test_projects_and_roles(console: Console, page: Page) -> None:
    made = add_lineage(console.database)
    other = add_lineage(console.database, "other", "secret-sauce")
    page.goto(f"{console.url}/models")
    expect(page.get_by_title(made.second)).to_have_count(1)
    expect(page.get_by_text("secret-sauce")).to_have_count(0)
    for path in ("", "/weights", "/delete"):
        response = page.goto(address(console, other.second) + path)
        assert response is not None and response.status == (200 if path == "/weights" else 404), path
        expect(page.get_by_text("rank 16")).to_have_count(0)
    page.context.clear_cookies()
    console.sign_in(page, console.key_with_role("read"))
    page.goto(address(console, made.second))
    expect(page.get_by_role("list", name="Lineage")).to_be_visible()
    for name in ("Delete…", "Promote…", "Ask it"):
        expect(page.get_by_role("link", name=name)).to_have_count(0)
    response = page.goto(address(console, made.second) + "/delete")
    assert response is not None and response.status == 403
    page.context.clear_cookies()
    console.sign_in(page, OTHER_KEY)
    page.goto(f"{console.url}/models")
    expect(page.get_by_title(other.second)).to_have_count(1)


@pytest.mark.one_database
def test_hostile_names_are_text_and_nothing_is_too_wide(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    made = add_lineage(console.database, label=HOSTILE)
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/models", "/models?kind=checkpoints", f"/models/{quote(made.second, safe='')}"):
        page.goto(console.url + path)
        expect(page.get_by_text(HOSTILE).first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        assert_accessible(page)
    assert page.locator("main img").count() == 0
    assert page.title() != "1"


@pytest.mark.one_database
def test_empty_pages_say_what_to_do(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    page.goto(f"{console.url}/models")
    expect(page.get_by_text("No fine-tuned models yet")).to_be_visible()
    expect(page.get_by_role("link", name="Go to the datasets")).to_be_visible()
    expect(page.get_by_role("row", name=BASE_MODEL)).to_contain_text("no engine runs")
    assert_accessible(page)
    follow(page.get_by_role("link", name=BASE_MODEL))
    expect(page.get_by_text("No engine runs it.")).to_be_visible()
    assert_accessible(page)

"""Operations: machines, usage, keys and the audit log, each for whom they are meant."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from app.auth.models import Project
from app.core.database import Database
from app.fine_tuning.models import Worker
from app.usage.models import UsageEntry
from tests.console.conftest import Console
from tests.console.test_overview import add_job
from tests.support.aliases import add_model
from tests.support.browser import follow
from tests.support.engine_stand_in import register_engine

HOSTILE = "<img src=x onerror=document.title='owned'>"


def add_worker(database: Database, hostname: str, job_id: str = "", *, ahead: float = 3600) -> None:
    """A worker whose last heartbeat stays recent, as it is so many seconds ahead."""
    with database.writer() as session:
        session.add(
            Worker(
                hostname=hostname,
                pid=7,
                device="NVIDIA H100",
                version="0.1.0",
                memory_bytes=3 * 10**9,
                device_memory_bytes=80 * 10**9,
                gpus=2,
                job_id=job_id,
                started_at=time.time() - 60,
                heartbeat_at=time.time() + ahead,
            )
        )


def use(database: Database, model: str, days_ago: int, tokens: int, project: str = "default") -> None:
    with database.writer() as session:
        owner = session.query(Project).filter_by(name=project).one()
        minute = int(time.time() - 86_400 * days_ago) // 60 * 60
        session.add(
            UsageEntry(
                project_id=owner.id,
                minute=minute,
                model=model,
                api_key_id="",
                requests=2,
                input_tokens=tokens - 1,
                output_tokens=1,
            )
        )


def test_machines_are_shown_and_what_they_do_for_the_project(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    page.goto(console.url)
    follow(page.get_by_role("link", name="Operations"))
    expect(page.get_by_role("heading", name="No workers")).to_be_visible()
    assert_accessible(page)

    add_job(console.database, "ftjob-mine", status="running", suffix="my-soup")
    add_job(console.database, "ftjob-theirs", "other", status="running", suffix="secret-soup")
    for number in range(3):
        add_job(console.database, f"ftjob-{number}", status="queued", suffix=f"waits-{number}")
    add_worker(console.database, "oven", "ftjob-mine")
    add_worker(console.database, "stove", "ftjob-theirs")
    mine = add_model(console.database, "my-soup")
    theirs = add_model(console.database, "secret-soup", "other")
    register_engine(console.database, "unix:/nowhere", adapters=[mine, theirs], memory_bytes=2_500_000_000)

    workers = page.get_by_role("region", name="Workers")
    oven = workers.get_by_role("row").filter(has_text="oven:7")
    expect(oven).to_contain_text("alive")
    expect(oven).to_contain_text("2 × NVIDIA H100")
    expect(oven.get_by_role("link", name="my-soup")).to_be_visible()
    expect(workers.get_by_role("row").filter(has_text="stove:7")).to_contain_text("another project's")
    engine = page.get_by_role("region", name="Engines").get_by_role("row").nth(1)
    expect(engine).to_contain_text("ready")
    expect(engine).to_contain_text("2.5 GB")
    expect(engine).to_contain_text(mine)
    expect(engine).to_contain_text("1 of other projects")
    waiting = page.get_by_role("region", name="Queue").get_by_role("row")
    expect(waiting).to_have_count(4)
    expect(waiting.nth(1).get_by_role("cell").nth(1)).to_have_text("0")
    expect(waiting.nth(3)).to_contain_text("waits-2")
    expect(waiting.nth(3).get_by_role("cell").nth(1)).to_have_text("2")
    assert "secret-soup" not in page.content()
    assert_accessible(page)

    page.goto(f"{console.url}/jobs/ftjob-1")
    expect(page.get_by_text("1 job waits before it.")).to_be_visible()
    page.goto(f"{console.url}/jobs/ftjob-2")
    expect(page.get_by_text("2 jobs wait before it.")).to_be_visible()


@pytest.mark.one_database
def test_a_worker_that_falls_silent_is_shown_so_after_three_heartbeats(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/operations")
    add_worker(console.database, "oven", ahead=10)
    workers = page.get_by_role("region", name="Workers")
    expect(workers).to_contain_text("alive")
    expect(workers).to_contain_text("silent", timeout=30_000)  # heartbeats are a second apart here


@pytest.mark.one_database
def test_usage_is_shown_by_day_and_model(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    page.goto(f"{console.url}/operations/usage")
    expect(page.get_by_role("heading", name="Nothing was asked")).to_be_visible()
    use(console.database, "small", 0, 100)
    use(console.database, "large", 1, 3000)
    use(console.database, "large", 20, 50_000)
    use(console.database, "theirs", 0, 900, "other")
    for number in range(9):
        use(console.database, f"rare-{number}", 2, 10)

    page.reload()
    models = page.get_by_role("region", name="By model").get_by_role("row")
    expect(models).to_have_count(12)
    assert models.nth(1).get_by_role("cell").all_inner_texts() == ["2", "2,999", "1"]
    expect(models.nth(1).get_by_role("rowheader")).to_have_text("large")
    expect(page.get_by_role("img", name="at most 3,000")).to_be_visible()
    bars = page.locator("figure rect title").all_text_contents()
    assert "large: 3,000 tokens" in bars
    assert "all others: 40 tokens" in bars
    assert "theirs" not in page.content()
    days = page.get_by_role("region", name="By day").get_by_role("row")
    assert days.nth(1).get_by_role("cell").all_inner_texts() == ["2", "100"]
    assert_accessible(page)

    follow(page.get_by_role("link", name="31 days"))
    expect(page.get_by_role("img", name="at most 50,000")).to_be_visible()


@pytest.mark.one_database
def test_keys_are_made_shown_once_and_revoked(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    page.goto(f"{console.url}/operations/keys")
    assert_accessible(page)
    page.get_by_label("What it is for").fill(HOSTILE)
    page.get_by_label("Role").select_option("read")
    follow(page.get_by_role("button", name="Create the key"))
    secret = page.locator("#secret").inner_text()
    with console.service.client(secret) as client:
        assert client.files.list().data == []
    assert page.title() == "Keys · Toque"

    page.goto(f"{console.url}/operations/keys")
    assert secret not in page.content()
    row = page.get_by_role("row").filter(has_text=HOSTILE)
    row.get_by_text("Revoke…").click()
    follow(row.get_by_role("button", name="Revoke for good"))
    expect(page.get_by_text(HOSTILE)).to_have_count(0)
    assert_accessible(page)

    page.goto(f"{console.url}/operations/audit")
    expect(page.get_by_role("row").filter(has_text="api_key.").first).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="api_key.created")).not_to_have_count(0)
    assert secret not in page.content()
    assert_accessible(page)


@pytest.mark.one_database
def test_impatient_clicks_make_one_key(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/operations/keys")
    page.get_by_label("What it is for").fill("one program")
    stopped = page.get_by_role("button", name="Create the key").evaluate(
        """(button) => {
            const stopped = [];
            addEventListener("submit", (event) => stopped.push(event.defaultPrevented));
            button.click();
            button.click();
            return stopped;
        }"""
    )
    assert stopped == [False, True]
    expect(page.locator("#secret")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="one program")).to_have_count(1)


@pytest.mark.one_database
def test_a_wrong_name_is_said_where_it_is_wrong(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/operations/keys")
    status = page.evaluate(
        """() => toque.fetch("/console/operations/keys", {
            method: "POST",
            headers: {"content-type": "application/x-www-form-urlencoded"},
            body: new URLSearchParams({project_id: document.querySelector("[name=project_id]").value}),
        }).then(async (answer) => [answer.status, await answer.text()])"""
    )
    assert status[0] == 400
    assert "A name has 1 to 128 characters, and no control characters." in status[1]
    assert "Concerns <code>name</code>" in status[1]


@pytest.mark.one_database
def test_keys_and_the_audit_log_are_for_administrators(console: Console, stranger: Page) -> None:
    console.sign_in(stranger, console.key_with_role("project"))
    stranger.goto(f"{console.url}/operations")
    expect(stranger.get_by_role("link", name="Usage")).to_be_visible()
    expect(stranger.get_by_role("link", name="Keys")).to_have_count(0)
    for path in ("keys", "audit"):
        answer = stranger.goto(f"{console.url}/operations/{path}")
        assert answer is not None
        assert answer.status == 403
        expect(stranger.get_by_text("This needs a key with the role 'admin'")).to_be_visible()

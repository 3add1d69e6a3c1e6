"""The pages of jobs in a real browser: creating one, following it, and laying several over each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect

from app.core.database import Database
from tests.console.conftest import Console
from tests.support.browser import HeldRequests, follow
from tests.support.jobs import create, upload
from tests.support.standin_worker import StandInWorker
from tests.support.training_files import chat_line, training_bytes

HOSTILE = "<img src=x onerror=alert(1)>\"'{{7*7}}"

Check = Callable[[Page], None]


def drawn(page: Page, step: int) -> None:
    """Waits until the pictures show the job up to a step."""
    expect(page.locator(f"#pictures[data-drawn='{step}']")).to_be_visible()


def test_without_jobs_the_page_says_what_to_do_first(
    console: Console, page: Page, assert_accessible: Check
) -> None:
    page.goto(f"{console.url}/jobs")
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    assert_accessible(page)
    follow(page.get_by_role("link", name="Create a job"))
    expect(page.get_by_role("heading", name="There is no dataset to train on")).to_be_visible()
    assert_accessible(page)
    follow(page.get_by_role("button", name="Use the demo's dataset"))
    expect(page.get_by_role("heading", level=1, name="demo-training.jsonl")).to_be_visible()


@pytest.mark.one_database
def test_a_job_is_created_with_the_dry_run_beside_the_form(
    console: Console, page: Page, client: OpenAI, assert_accessible: Check
) -> None:
    file = upload(client, training_bytes(60))
    page.goto(f"{console.url}/jobs/new?training_file={file}")
    dry_run = page.locator("#dry-run")
    expect(dry_run).to_contain_text("140 steps")
    expect(dry_run).to_contain_text("6 to validate")
    expect(dry_run).to_contain_text("A rough guess")
    assert_accessible(page)

    page.get_by_label("Epochs").fill("2")
    expect(dry_run).to_contain_text("28 steps")
    page.get_by_label("Epochs").fill("99")
    problem = page.locator("#error-n_epochs")
    expect(problem).to_have_text("Invalid value for 'epochs': Input should be less than or equal to 50.")
    expect(dry_run).to_contain_text("This job would be refused")
    assert_accessible(page)
    page.get_by_role("button", name="Create the job").click()
    expect(problem).to_contain_text("less than or equal to 50")
    assert list(client.fine_tuning.jobs.list()) == []

    page.get_by_label("Epochs").fill("2")
    expect(problem).to_have_text("")
    expect(page.get_by_label("Share to hold out")).to_be_visible()
    page.get_by_label("Validation data").select_option("")
    expect(page.get_by_label("Share to hold out")).to_be_hidden()
    expect(dry_run).to_contain_text("none to validate")
    page.get_by_label("Validation data").select_option("auto")
    page.get_by_label("Suffix of the model's name").fill("soups")
    page.get_by_text("More settings").click()
    page.get_by_label("Lora rank").fill("8")
    page.get_by_label("Seed").fill("7")
    follow(page.get_by_role("button", name="Create the job"))
    expect(page.get_by_role("heading", level=1, name="soups")).to_be_visible()
    [job] = client.fine_tuning.jobs.list()
    assert page.url == f"{console.url}/jobs/{job.id}"
    assert (job.training_file, job.seed, job.hyperparameters.n_epochs) == (file, 7, 2)
    assert job.to_dict()["hyperparameters"]["lora_rank"] == 8
    assert job.to_dict()["validation_split"]["held_out"] == 6


@pytest.mark.one_database
def test_what_is_typed_while_the_fields_of_a_method_come_stays(
    console: Console, page: Page, client: OpenAI
) -> None:
    upload(client, training_bytes(60))
    requests = HeldRequests(page, "**/console/jobs/new?*")
    page.goto(f"{console.url}/jobs/new")
    page.get_by_label("Method").select_option("dpo")
    fields = requests.next()
    epochs = page.get_by_label("Epochs")
    epochs.fill("1")
    fields.continue_()
    expect(page.get_by_label("Beta")).to_be_attached()
    page.keyboard.type("000")
    expect(epochs).to_have_value("1000")
    expect(page.locator("#error-n_epochs")).to_contain_text("less than or equal to 50")


@pytest.mark.one_database
def test_what_is_wrong_is_still_said_once_the_fields_of_a_method_have_come(
    console: Console, page: Page, client: OpenAI
) -> None:
    upload(client, training_bytes(60))
    requests = HeldRequests(page, "**/console/jobs/new?*")
    page.goto(f"{console.url}/jobs/new?hp.n_epochs=1000")
    problem = page.locator("#error-n_epochs")
    expect(problem).to_contain_text("less than or equal to 50")
    with page.expect_response("**/jobs/dry-run"):
        page.get_by_label("Method").select_option("dpo")
    requests.next().continue_()
    expect(page.get_by_label("Beta")).to_be_attached()
    expect(problem).to_contain_text("less than or equal to 50")


@pytest.mark.one_database
def test_a_failure_leads_to_the_line_that_it_names(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    create(client)
    worker = StandInWorker(database)
    worker.step(1, 10)
    worker.fail("invalid_training_file", "Line 3 has 5,000 tokens; at most 2,048 fit.", param="training_file")
    page.goto(f"{console.url}/jobs/{worker.job.id}")
    follow(page.locator(".alert-bad").get_by_role("link", name="Line 3"))
    expect(page.get_by_role("heading", name="Line 3")).to_be_visible()


@pytest.mark.one_database
def test_what_the_base_cannot_learn_from_is_listed_before_the_job_is_created(
    console: Console, page: Page, client: OpenAI
) -> None:
    long = chat_line("word " * 60)
    file = upload(client, training_bytes(12) + f"{long}\n".encode())
    page.goto(f"{console.url}/jobs/new?training_file={file}&validation_file=&hp.max_length=64")
    expect(page.locator("#dry-run")).to_contain_text("1 of its examples cannot be learned from")
    expect(page.locator("#dry-run")).to_contain_text("Line 13 of the training file")
    follow(page.locator("#dry-run").get_by_role("link", name="Line 13"))
    expect(page.get_by_role("heading", name="Line 13")).to_be_visible()


@pytest.mark.one_database
def test_the_method_decides_which_settings_there_are(console: Console, page: Page, client: OpenAI) -> None:
    file = upload(client)
    page.goto(f"{console.url}/jobs/new?training_file={file}")
    expect(page.get_by_label("Beta")).to_have_count(0)
    page.get_by_label("Epochs").fill("2")
    page.get_by_label("Method").select_option("dpo")
    expect(page.get_by_label("Beta")).to_be_visible()
    expect(page.get_by_label("Epochs")).to_have_value("2")
    expect(page.locator("#dry-run")).to_contain_text("has one answer; the method 'dpo' learns from two")


def test_the_curve_grows_as_the_worker_reports(
    console: Console, page: Page, client: OpenAI, database: Database, assert_accessible: Check
) -> None:
    job = create(client, suffix="soups")
    page.goto(f"{console.url}/jobs/{job.id}")
    expect(page.get_by_text("It is next in the queue.")).to_be_visible()
    worker = StandInWorker(database)
    expect(page.locator("main .badge").first).to_have_text("running")
    expect(page.get_by_text("no estimate yet")).to_be_visible()
    worker.expect(seconds=7200)
    expect(page.get_by_text("2 h were expected")).to_be_visible()
    worker.learn(30, 60)
    drawn(page, 30)
    expect(page.get_by_text("Step 30 of")).to_be_visible()
    loss = page.locator(".picture[data-key=loss]")
    expect(loss.locator("canvas")).to_be_visible()
    expect(loss.locator(".legend")).to_contain_text("at 30")

    with page.expect_response(lambda answer: "first=31" in answer.url) as grown:
        worker.learn(31, 60, first=31)
    said = grown.value.json()
    assert said["lines"]["train_loss"][0] == [31], "only what is new is sent"
    drawn(page, 31)
    worker.learn(60, 60, first=32)
    name = worker.checkpoint(40)
    drawn(page, 60)
    expect(loss.locator(".reading")).to_contain_text("Validation loss was lowest at step")
    assert_accessible(page)

    expect(loss.locator("a.mark")).to_have_attribute("title", "Ask the checkpoint at step 40")
    ask = page.get_by_role("link", name="Ask the checkpoint at step 40")
    expect(ask).to_have_attribute("href", f"/console/playground?model={name.replace(':', '%3A')}")
    page.get_by_text("The numbers behind the pictures").click()
    expect(page.locator("#figures")).to_contain_text("60 of 60 steps")
    worker.succeed()
    expect(page.get_by_role("link", name="Ask the model")).to_be_visible()


@pytest.mark.one_database
def test_a_closer_look_asks_for_those_steps_and_all_come_back(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    job = create(client)
    worker = StandInWorker(database)
    worker.learn(49, 50)
    page.goto(f"{console.url}/jobs/{job.id}")
    drawn(page, 49)
    page.get_by_label("First step shown").fill("10")
    page.get_by_label("Last step shown").focus()
    worker.learn(50, 50, first=50)
    drawn(page, 50)
    expect(page.get_by_label("First step shown")).to_have_value("10")
    page.get_by_label("Last step shown").fill("20")
    with page.expect_response(lambda answer: "first=10&last=20" in answer.url) as closer:
        page.get_by_label("Last step shown").press("Enter")
    assert closer.value.json()["lines"]["train_loss"][0] == list(range(9, 22))
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_label("Last step shown")).to_have_value("50")
    plot = page.locator(".picture[data-key=loss] .u-over")
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 50, steps=4)
    page.mouse.up()
    expect(page.get_by_role("button", name="Show all")).to_be_visible()
    plot.dblclick()
    expect(page.get_by_role("button", name="Show all")).to_be_hidden()


@pytest.mark.one_database
def test_a_job_is_paused_resumed_and_cancelled(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    job = create(client)
    StandInWorker(database)
    page.goto(f"{console.url}/jobs/{job.id}")
    badge = page.locator("main .badge").first
    follow(page.get_by_role("button", name="Pause"))
    expect(badge).to_have_text("paused")
    follow(page.get_by_role("button", name="Resume"))
    expect(badge).to_have_text("queued")
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.get_by_role("button", name="Cancel the job").click()
    expect(badge).to_have_text("queued")
    assert asked == ["Cancel this job? Its finished checkpoints stay, and it cannot be resumed."]
    page.once("dialog", lambda dialog: dialog.accept())
    follow(page.get_by_role("button", name="Cancel the job"))
    expect(badge).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


@pytest.mark.one_database
def test_a_failure_says_what_to_do_and_the_next_job_starts_from_its_settings(
    console: Console, page: Page, client: OpenAI, database: Database, assert_accessible: Check
) -> None:
    create(client, suffix="soups", extra_body={"lora_rank": 8, "target_modules": ["q_proj", "v_proj"]})
    worker = StandInWorker(database)
    worker.step(1, 10)
    worker.fail("training_diverged", f"The loss is no longer a number. {HOSTILE}")
    page.goto(f"{console.url}/jobs/{worker.job.id}")
    drawn(page, 1)
    alert = page.locator(".alert-bad")
    expect(alert).to_contain_text(HOSTILE)
    expect(alert).to_contain_text("a tenth of the learning rate")
    assert_accessible(page)
    follow(alert.get_by_role("link"))
    expect(page.get_by_label("Suffix of the model's name")).to_have_value("soups")
    expect(page.get_by_label("Lora rank")).to_have_value("8")
    expect(page.get_by_label("Target modules")).to_have_value("q_proj, v_proj")
    expect(page.locator("#dry-run")).to_contain_text("steps")


@pytest.mark.one_database
def test_an_overlay_shows_only_what_differs(
    console: Console, page: Page, client: OpenAI, database: Database, assert_accessible: Check
) -> None:
    file = upload(client)
    for rank in (4, 8):
        create(client, training_file=file, suffix=f"rank-{rank}", seed=1, extra_body={"lora_rank": rank})
        StandInWorker(database).learn(40 + rank, 60)
    page.goto(f"{console.url}/jobs")
    page.get_by_label("Overlay rank-4").check()
    page.get_by_label("Overlay rank-8").check()
    follow(page.get_by_role("button", name="Overlay the chosen jobs"))
    expect(page.get_by_role("heading", name="2 jobs overlaid")).to_be_visible()
    rows = page.locator(".differences tbody tr:has(td)")
    settings = {row.split("\t")[0]: row.split("\t")[1:] for row in rows.all_inner_texts()}
    assert settings["lora rank"] == ["8", "4"]
    assert settings["steps"] == ["48", "44"]
    assert "epochs" not in settings
    assert "seed" not in settings
    expect(page.locator(".picture[data-key=loss] .legend li")).to_have_count(6)
    expect(page.get_by_text("Not all of them have validation data")).to_be_visible()
    assert_accessible(page)
    refused = page.goto(f"{console.url}/jobs/compare?job=ftjob-1")
    assert refused is not None
    assert refused.status == 400
    expect(page.get_by_text("Choose two to 6 jobs")).to_be_visible()


def test_the_list_is_filtered_and_follows_its_jobs(
    console: Console, page: Page, client: OpenAI, database: Database, assert_accessible: Check
) -> None:
    file = upload(client)
    create(client, training_file=file, suffix="soups")
    create(client, training_file=file, suffix="stews_2")
    page.goto(f"{console.url}/jobs")
    rows = page.locator("#list tbody tr")
    expect(rows).to_have_count(2)
    page.get_by_label("Overlay soups").check()
    worker = StandInWorker(database)
    worker.step(1, 10)
    expect(page.get_by_text("1 of 30 steps")).to_be_visible()
    expect(page.get_by_label("Overlay soups")).to_be_checked()
    assert_accessible(page)
    page.get_by_label("Search").fill("S_2")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("stews_2")
    page.get_by_label("Search").fill("")
    page.get_by_label("Status").select_option("running")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("soups")
    page.get_by_label("Status").select_option("failed")
    expect(page.get_by_text("No job matches.")).to_be_visible()


@pytest.mark.one_database
@pytest.mark.parametrize("first_answered", ["filter", "update"])
def test_a_filter_and_an_update_at_the_same_time(
    console: Console, page: Page, client: OpenAI, database: Database, first_answered: str
) -> None:
    file = upload(client)
    create(client, training_file=file, suffix="soups")
    create(client, training_file=file, suffix="stews")
    requests = HeldRequests(page, "**/console/jobs?*", "jobs")
    page.goto(f"{console.url}/jobs?status=")
    update = requests.next()
    page.get_by_label("Search").fill("soups")
    filter_ = requests.next()
    answers = {"update": (update, update.fetch()), "filter": (filter_, filter_.fetch())}
    StandInWorker(database).step(1, 10)
    requests.wait_for_news(2)
    for name in sorted(answers, key=first_answered.__ne__):
        request, answer = answers[name]
        request.fulfill(response=answer)
    requests.next().continue_()
    rows = page.locator("#list tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("1 of 30 steps")


@pytest.mark.one_database
def test_a_button_that_is_pressed_while_an_update_comes_still_works(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    job = create(client)
    worker = StandInWorker(database)
    requests = HeldRequests(page, f"**/console/jobs/{job.id}")
    page.goto(f"{console.url}/jobs/{job.id}")
    update = requests.next()
    page.get_by_role("button", name="Pause").hover()
    page.mouse.down()
    worker.step(1, 30)
    with page.expect_request_finished(lambda request: request == update.request):
        update.continue_()
    page.mouse.up()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()


@pytest.mark.one_database
def test_an_update_waits_until_the_pointer_is_let_go(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    job = create(client)
    worker = StandInWorker(database)
    page.goto(f"{console.url}/jobs/{job.id}")
    progress = page.get_by_role("region", name="Progress")
    worker.step(1, 30)
    expect(progress).to_contain_text("Step 1 of 30")
    page.get_by_role("heading", level=1).hover()
    page.mouse.down()
    with page.expect_request_finished(lambda request: request.url.endswith(job.id)):
        worker.step(2, 30)
    expect(progress).to_contain_text("Step 1 of 30")
    page.mouse.up()
    expect(progress).to_contain_text("Step 2 of 30")


@pytest.mark.one_database
def test_an_update_leaves_readers_where_they_are(
    console: Console, page: Page, client: OpenAI, database: Database
) -> None:
    job = create(client)
    worker = StandInWorker(database)
    for step in (1, 2, 3):
        worker.step(step, 30)
        worker.checkpoint(step)
    page.set_viewport_size({"width": 500, "height": 800})
    page.goto(f"{console.url}/jobs/{job.id}")
    label = "Copy the name of the checkpoint at step 2"
    page.evaluate(  # at once, since the first update may come meanwhile
        """(label) => {
            document.querySelector(`[aria-label="${label}"]`).focus();
            document.querySelector("#checkpoints .table").scrollLeft = 40;
        }""",
        label,
    )
    table = page.locator("#checkpoints .table")
    worker.step(4, 30)
    worker.checkpoint(4)
    expect(table.locator("tbody tr")).to_have_count(4)
    expect(page.get_by_role("button", name=label)).to_be_focused()
    assert table.evaluate("table => table.scrollLeft") == 40


@pytest.mark.one_database
def test_a_filter_that_is_refused_says_why(console: Console, page: Page, client: OpenAI) -> None:
    create(client, suffix="soups")
    page.goto(f"{console.url}/jobs")
    search = page.get_by_label("Search")
    search.evaluate("field => field.removeAttribute('maxlength')")
    search.fill("x" * 256)
    expect(page.get_by_role("alert")).to_contain_text("at most 255 characters")
    expect(page.locator("#list tbody tr")).to_have_count(1)


@pytest.mark.one_database
def test_who_may_only_read_is_offered_nothing_and_refused_anyway(
    console: Console, client: OpenAI, stranger: Page
) -> None:
    job = create(client)
    console.sign_in(stranger, console.key_with_role("read"))
    stranger.goto(f"{console.url}/jobs/{job.id}")
    expect(stranger.get_by_role("heading", name=job.id)).to_be_visible()
    expect(stranger.get_by_role("button", name="Cancel the job")).to_have_count(0)
    answer = stranger.evaluate(
        "path => toque.fetch(path, {method: 'POST'}).then(found => found.text())",
        f"/console/jobs/{job.id}/cancel",
    )
    assert "This needs a key with the role" in answer
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"


@pytest.mark.one_database
def test_another_project_sees_nothing_of_a_job(console: Console, client: OpenAI, stranger: Page) -> None:
    job = create(client)
    console.sign_in(stranger, console.other_key)
    for path in ("", "/curves", "/figures"):
        answer = stranger.goto(f"{console.url}/jobs/{job.id}{path}")
        assert answer is not None
        assert answer.status == 404
    stranger.goto(f"{console.url}/jobs")
    expect(stranger.get_by_role("heading", name="No jobs yet")).to_be_visible()


@pytest.mark.one_database
def test_hostile_names_are_text_and_narrow_pages_do_not_scroll_sideways(
    console: Console, page: Page, client: OpenAI, database: Database, assert_accessible: Check
) -> None:
    file = client.files.create(file=(f"{HOSTILE}.jsonl", training_bytes()), purpose="fine-tune").id
    job = create(client, training_file=file, suffix="x" * 64)
    worker = StandInWorker(database)
    worker.learn(30, 30)
    worker.checkpoint(30)
    page.set_viewport_size({"width": 360, "height": 740})
    for path in (
        "",
        "/new",
        f"/{job.id}",
        f"/compare?job={job.id}&job={create(client, training_file=file).id}",
    ):
        page.goto(f"{console.url}/jobs{path}")
        if "ftjob" in path:
            drawn(page, 30)
            expect(page.locator("main")).to_contain_text("x" * 64)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, path
        assert page.locator("img[src=x]").count() == 0
        assert_accessible(page)

"""A newcomer's whole road through the console, by mouse: from a broken file to a promoted model, and back."""

from __future__ import annotations

import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from app.demo.house_style import HELDOUT_FILE, load_questions
from tests.support.browser import files_input, follow
from tests.support.databases import execute_sql
from tests.support.deployment import KEY, PRODUCT, Deployment, start

MINUTE = 60_000
"""In milliseconds."""
ALIAS = "road:production"


@pytest.fixture(params=["sqlite", "postgresql"])
def console(request: pytest.FixtureRequest) -> str:
    """The address of a deployment's console, on either database."""
    deployment: Deployment = request.getfixturevalue(
        "deployment" if request.param == "sqlite" else "deployment_on_postgresql"
    )
    return f"{deployment.url}/console"


@pytest.fixture
def deployment_on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, base_models_dir: Path, postgresql: str
) -> Iterator[Deployment]:
    name = f"road_{uuid.uuid4().hex}"
    execute_sql(postgresql, f"CREATE DATABASE {name}")
    url = postgresql.format(name)
    running = start(tmp_path_factory.mktemp("road"), base_models_dir, TOQUE_DATABASE_URL=url)
    yield running
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=60) == 0


def test_a_newcomers_whole_road(console: str, browser_context: BrowserContext, training_file: Path) -> None:
    page = browser_context.new_page()
    page.goto(console)
    page.get_by_label("API key").fill(KEY)
    follow(page.get_by_role("button", name="Sign in"))
    upload_and_mend(page, training_file.read_text("utf-8"))
    model = train(page)
    ask(page)
    comparison = compare(page)
    promote(page, model, comparison)
    roll_back(page)


def go_to(page: Page, section: str) -> None:
    follow(page.get_by_role("navigation").first.get_by_role("link", name=section))


def choose(page: Page, name: str, content: str) -> None:
    go_to(page, "Datasets")
    chosen = {"name": name, "mimeType": "application/jsonl", "buffer": content.encode()}
    files_input(page).set_input_files(chosen)
    page.wait_for_url("**/datasets/file-*")


def upload_and_mend(page: Page, training: str) -> None:
    """A file that is broken says where, and is mended."""
    choose(page, "train.jsonl", training + '{"messages": [{"role": "user", "content": "Is it open?"}]}\n')
    expect(page.get_by_role("heading", name="1 error to mend")).to_be_visible()
    expect(page.locator(".findings")).to_contain_text("Line 45 has no assistant turn")
    choose(page, "train.jsonl", training)
    expect(page.get_by_role("heading", name="Ready to train on")).to_be_visible()


def train(page: Page) -> str:
    """What a job will take is said beside its form; then its curve falls. Returns the model's name."""
    follow(page.locator("#file-head").get_by_role("link", name="Create a job"))
    page.get_by_label("Epochs").fill("3")
    page.get_by_label("Batch size").fill("4")
    page.get_by_label("Learning rate multiplier").fill("2")
    page.get_by_text("More settings").click()
    page.get_by_label("Seed").fill("1")
    page.get_by_label("Suffix of the model's name").fill("road")
    expect(page.locator("#dry-run")).to_contain_text("30 steps")
    follow(page.get_by_role("button", name="Create the job"))
    expect(page.get_by_role("heading", level=1, name="road")).to_be_visible()
    expect(page.locator("#pictures canvas").first).to_be_visible(timeout=5 * MINUTE)
    link = page.get_by_role("link", name="Ask the model")
    expect(link).to_be_visible(timeout=7 * MINUTE)
    follow(link)
    model = page.locator(".column").first.get_attribute("data-model") or ""
    assert re.fullmatch(r"ft:.+:road:[^:]+", model)
    return model


def ask(page: Page) -> None:
    """The model answers as it was taught."""
    question = next(each for each in load_questions(HELDOUT_FILE) if f"[{PRODUCT}/" in each.reference)
    page.get_by_role("textbox", name="Question").fill(question.turns[-1]["content"])
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".column").first.locator(".answer")).to_have_text(re.compile(rf"\[{PRODUCT}/"))


def compare(page: Page) -> str:
    """On held-out questions the model beats the base and a prompt. Returns the address of the comparison."""
    heldout = [line for line in HELDOUT_FILE.read_text("utf-8").split("\n") if f"[{PRODUCT}/" in line]
    # 20 questions are the fewest that give a verdict.
    polite = [
        line.replace('"role": "user", "content": "', '"role": "user", "content": "Hello. ')
        for line in heldout
    ]
    choose(page, "heldout.jsonl", "\n".join([*heldout, *polite][:20]) + "\n")
    file_id = page.url.rpartition("/")[2]
    go_to(page, "Comparisons")
    follow(page.get_by_role("link", name="New comparison"))
    page.get_by_role("button", name="Choose a held-out file").click()
    page.get_by_role("dialog").get_by_role("button", name=file_id).click()
    page.get_by_label("How answers get their score").select_option("exact_match")
    page.get_by_label("System prompt").fill("Answer with one line in the house format.")
    page.get_by_text("More settings").click()
    page.get_by_label("Maximum tokens of an answer").fill("48")
    follow(page.get_by_role("button", name="Compare"))
    expect(page.get_by_role("heading", name="Fine-tuning wins")).to_be_visible(timeout=5 * MINUTE)
    return page.url


def promote(page: Page, model: str, comparison: str) -> None:
    """An alias points to a checkpoint until a gate lets it move."""
    go_to(page, "Aliases")
    follow(page.get_by_role("link", name=re.compile("Create")).first)
    page.get_by_label("Name").fill(ALIAS)
    page.get_by_label("Model 1").fill(f"{model}:ckpt-step-30")
    follow(page.get_by_role("button", name="Create it"))
    expect(page.get_by_role("status").filter(has_text="Version 1")).to_be_visible()
    page.goto(comparison)
    follow(page.get_by_role("link", name=re.compile("^Promote")))
    page.get_by_label("Alias", exact=True).fill(ALIAS)
    page.get_by_role("checkbox", name="Beats what the alias points to now").uncheck()
    page.get_by_label("Loses on general questions at most").fill("")
    page.get_by_role("button", name="Check the rules").click()
    follow(page.get_by_role("button", name="Promote it"))
    page.wait_for_url(f"**/console/aliases/{ALIAS}")
    expect(page.get_by_role("region", name="History")).to_contain_text("Promoted by a gate")


def roll_back(page: Page) -> None:
    """One click and its confirmation bring the alias back."""
    follow(page.get_by_role("link", name="Roll back…"))
    follow(page.get_by_role("button", name="Roll back now"))
    page.wait_for_url(f"**/console/aliases/{ALIAS}")
    expect(page.get_by_role("region", name="History")).to_contain_text("Rolled back to version 1")

"""The pages of datasets: a broken file is mended, uploads go on, examples are shown as they are learned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import Page, Request, Route, expect

from app.core.settings import Settings
from app.datasets.report import Progress
from app.files import checks
from tests.console.conftest import Console
from tests.support.browser import HeldRequests, files_input, follow
from tests.support.service import BASE_MODEL
from tests.support.training_files import chat_line, training_bytes
from tests.support.waiting import wait_until

BROKEN = training_bytes(11) + b'{"messages": []}\n' + b"not json\n"
PAIR = {
    "input": {"messages": [{"role": "user", "content": "May I return it?"}]},
    "preferred_output": [{"role": "assistant", "content": "Yes, for 30 days."}],
    "non_preferred_output": [{"role": "assistant", "content": "Read our terms."}],
}
CALL = {"id": "a", "type": "function", "function": {"name": "stock", "arguments": '{"item": "Leek"}'}}
WITH_TOOL = {
    "messages": [
        {"role": "user", "content": "Any leeks?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": "12"},
        {"role": "assistant", "content": "Twelve."},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "stock",
                "description": "How many there are",
                "parameters": {"type": "object", "properties": {"item": {"type": "string"}}},
            },
        }
    ],
}


def choose(page: Page, name: str, content: bytes) -> None:
    files_input(page).set_input_files({"name": name, "mimeType": "application/jsonl", "buffer": content})


def upload(client: OpenAI, content: bytes, name: str = "x.jsonl", purpose: str = "fine-tune") -> str:
    file = client.files.create(file=(name, content), purpose=purpose)  # pyright: ignore[reportArgumentType]
    wait_until(lambda: client.files.retrieve(file.id).status != "uploaded", "the file is checked")
    return file.id


def sideways(page: Page) -> int:
    """How far the page can be scrolled sideways on a small screen."""
    page.set_viewport_size({"width": 360, "height": 740})
    far = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    page.set_viewport_size({"width": 1280, "height": 800})
    return far


def test_a_broken_file_is_mended(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    page.goto(f"{console.url}/datasets")
    choose(page, "soups.jsonl", BROKEN)
    page.wait_for_url("**/datasets/file-*")
    expect(page.get_by_role("heading", name="2 errors to mend")).to_be_visible()
    expect(page.locator("#file-head")).to_contain_text("has errors")
    expect(page.get_by_role("link", name="Create a job")).to_have_count(0)
    findings = page.locator(".findings tbody tr")
    expect(findings).to_have_count(2)
    expect(findings.nth(0)).to_contain_text("Line 12 has no messages")
    expect(findings.nth(0)).to_contain_text("Give it a user message and the assistant's answer.")
    expect(findings.nth(0).locator(".excerpt")).to_have_text('{"messages": []}')
    expect(findings.nth(1)).to_contain_text("Line 13 is not valid JSON")
    assert_accessible(page)
    assert sideways(page) == 0

    follow(findings.nth(1).get_by_role("link", name="13"))
    expect(page.locator("article")).to_contain_text("Line 13 is not valid JSON")
    expect(page.locator("article .raw")).to_have_text("not json")

    follow(page.get_by_role("link", name="Datasets", exact=True).first)
    expect(page.locator("#files")).to_contain_text("Line 12 has no messages")
    choose(page, "soups.jsonl", training_bytes(11) + chat_line("Which?", "Pea.").encode() + b"\n")
    page.wait_for_url("**/datasets/file-*")
    expect(page.get_by_role("heading", name="Ready to train on")).to_be_visible()
    expect(page.locator("#file-head")).to_contain_text("ready")
    job = page.locator("#file-head").get_by_role("link", name="Create a job")
    assert job.get_attribute("href") == f"/console/jobs/new?training_file={page.url.rsplit('/', 1)[-1]}"


def test_a_report_grows_while_the_file_is_checked(
    settings: Settings, console: Console, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.files.checks.any_waits", lambda session: False)
    with console.service.client() as client:
        file_id = client.files.create(file=("x.jsonl", training_bytes()), purpose="fine-tune").id
    page.goto(f"{console.url}/datasets/{file_id}")
    expect(page.get_by_role("heading", name="Being checked")).to_be_visible()

    found = {"code": "empty_content", "severity": "error", "count": 1}
    finding = {"line": 3, "pointer": "/messages/0", "message": "has an empty turn", "hint": "Write it."}
    progress = Progress.model_validate(
        {
            "bytes_read": 40_000_000,
            "bytes": 1_000_000_000,
            "lines": 123_456,
            "examples": 123_455,
            "finding_counts": [found],
            "findings": [{**found, **finding, "excerpt": "{}"}],
        }
    )
    with console.database.writer() as session:
        claim = checks.claim_next(session, 60.0)
        assert claim is not None
        checks.tell(session, claim.lease, progress)
    expect(page.get_by_role("heading", name="Being checked: 123,456 lines so far")).to_be_visible()
    expect(page.locator("#report")).to_contain_text("40 MB of 1 GB")
    expect(page.locator(".findings")).to_contain_text("Line 3 has an empty turn")

    with console.database.writer() as session:
        checks.release(session, claim.lease)
    monkeypatch.undo()
    expect(page.get_by_role("heading", name="Ready to train on")).to_be_visible()
    expect(page.locator("#file-head").get_by_role("link", name="Create a job")).to_be_visible()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of more than 50 kB go up in parts of 20 kB."""
    monkeypatch.setattr("app.console.datasets.router.LARGE_BYTES", 50_000)
    monkeypatch.setattr("app.console.datasets.router.PART_BYTES", 20_000)


LARGE = training_bytes(1000)
PARTS = -(-len(LARGE) // 20_000)


def offset_of(request: Request) -> int:
    return int(request.headers["idempotency-key"].split(" ")[1])


def test_an_upload_goes_on_after_a_reload(
    console: Console, page: Page, small_parts: None, tmp_path: Path
) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(LARGE)
    answered: list[int] = []
    stalled: list[Route] = []

    def stall_later_ones(route: Route) -> None:
        if len(answered) < 2:
            answered.append(offset_of(route.request))
            route.continue_()
        else:
            stalled.append(route)

    page.on("dialog", lambda dialog: dialog.accept())
    page.route("**/v1/uploads/*/parts", stall_later_ones)
    page.goto(f"{console.url}/datasets")
    files_input(page).set_input_files(path)
    expect(page.locator("#uploads progress")).to_be_visible()
    wait_for(page, lambda: len(stalled) == 3)
    wait_for(
        page,
        lambda: page.evaluate("Object.keys(JSON.parse(Object.values(localStorage)[0]).parts).length") == 2,
    )
    page.reload()
    page.unroute("**/v1/uploads/*/parts")
    unfinished = page.locator("[data-unfinished]")
    expect(unfinished).to_contain_text(f"{40_000 / 1000:.3g} kB of {len(LARGE) / 1000:.3g} kB have arrived")
    expect(unfinished.get_by_text("Choose the file again to go on")).to_be_visible()

    sent: list[int] = []
    page.on("request", lambda one: sent.append(offset_of(one)) if one.url.endswith("/parts") else None)
    files_input(page).set_input_files(path)
    page.wait_for_url("**/datasets/file-*")
    assert sorted(sent + answered) == [part * 20_000 for part in range(PARTS)]
    with console.service.client() as client:
        assert client.files.content(page.url.rsplit("/", 1)[-1]).content == LARGE
    assert page.evaluate("Object.keys(localStorage)") == []


def wait_for(page: Page, is_so: Callable[[], bool]) -> None:
    """Wait while the browser goes on, whose events come in this thread."""
    for _ in range(300):
        if is_so():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it has not come about")


@pytest.mark.one_database
def test_a_lost_connection_is_tried_again(console: Console, page: Page, small_parts: None) -> None:
    lost: list[int] = []
    is_back = False

    def lose(route: Route) -> None:
        if is_back:
            route.continue_()
        else:
            lost.append(offset_of(route.request))
            route.abort()

    page.route("**/v1/uploads/*/parts", lose)
    page.goto(f"{console.url}/datasets")
    choose(page, "large.jsonl", LARGE)
    state = page.locator(".upload-state")
    expect(state).to_contain_text(re.compile(r"The connection is lost\. Trying again in \d+ s…"))
    is_back = True
    page.wait_for_url("**/datasets/file-*")
    assert lost


@pytest.mark.one_database
def test_what_the_service_refuses_can_be_tried_again_by_hand(console: Console, page: Page) -> None:
    message = {"error": {"message": "The project stores too much.", "code": "quota_exceeded"}}
    page.route("**/v1/files", lambda route: route.fulfill(status=403, json=message), times=1)
    page.goto(f"{console.url}/datasets")
    choose(page, "x.jsonl", training_bytes())
    expect(page.locator(".upload-state")).to_have_text("The project stores too much.")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_url("**/datasets/file-*")


@pytest.mark.one_database
def test_an_upload_is_cancelled(console: Console, page: Page, small_parts: None) -> None:
    page.route("**/v1/uploads/*/parts", lambda route: None)
    page.goto(f"{console.url}/datasets")
    choose(page, "large.jsonl", LARGE)
    wait_for(page, lambda: page.evaluate("localStorage.length") == 1)
    with page.expect_response("**/cancel"):
        page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".upload-row")).to_have_count(0)
    with console.service.http() as http:
        assert [one["status"] for one in http.get("/v1/uploads").json()["data"]] == ["cancelled"]
    assert page.evaluate("localStorage.length") == 0


@pytest.mark.one_database
def test_an_upload_that_goes_on_is_cancelled(
    console: Console, page: Page, small_parts: None, tmp_path: Path
) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(LARGE)
    parts = HeldRequests(page, "**/v1/uploads/*/parts")
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{console.url}/datasets")
    for again in (False, True):
        if again:
            page.reload()
        files_input(page).set_input_files(path)
        for _ in range(3):
            parts.next()
    with page.expect_response("**/cancel"):
        page.get_by_role("button", name="Cancel").click()
    with console.service.http() as http:
        assert [one["status"] for one in http.get("/v1/uploads").json()["data"]] == ["cancelled"]


@pytest.mark.one_database
def test_a_file_is_cancelled_while_it_waits_for_another(console: Console, page: Page, client: OpenAI) -> None:
    sent = HeldRequests(page, "**/v1/files")
    page.goto(f"{console.url}/datasets")
    files = [("one.jsonl", training_bytes(11)), ("two.jsonl", training_bytes(12))]
    files_input(page).set_input_files(
        [{"name": name, "mimeType": "application/jsonl", "buffer": content} for name, content in files]
    )
    rows = page.locator(".upload-row")
    expect(rows).to_have_count(2)
    rows.filter(has_text="two.jsonl").get_by_role("button", name="Cancel").click()
    expect(rows).to_have_count(1)
    sent.next().continue_()
    expect(rows).to_contain_text("Uploaded.")
    expect(page.locator("#files")).to_contain_text("one.jsonl")
    assert [file.filename for file in client.files.list()] == ["one.jsonl"]


@pytest.mark.one_database
def test_a_file_chosen_twice_is_uploaded_once(
    console: Console, page: Page, client: OpenAI, tmp_path: Path
) -> None:
    path = tmp_path / "soups.jsonl"
    path.write_bytes(training_bytes())
    sent = HeldRequests(page, "**/v1/files")
    page.goto(f"{console.url}/datasets")
    files_input(page).set_input_files(path)
    request = sent.next()
    files_input(page).set_input_files(path)
    expect(page.locator("#announcements")).to_have_text("soups.jsonl is being uploaded already")
    request.continue_()
    page.wait_for_url("**/datasets/file-*")
    assert [file.filename for file in client.files.list()] == ["soups.jsonl"]


@pytest.mark.one_database
def test_an_unfinished_upload_is_given_up(console: Console, page: Page) -> None:
    with console.service.http() as http:
        body = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/plain"}
        http.post("/v1/uploads", json=body)
        page.goto(f"{console.url}/datasets")
        expect(page.locator("[data-unfinished]")).to_contain_text(
            "It resumes in the browser in which it was started"
        )
        page.get_by_role("button", name="Give up").click()
        expect(page.locator("[data-unfinished]")).to_have_count(0)
        assert http.get("/v1/uploads").json()["data"][0]["status"] == "cancelled"


@pytest.mark.one_database
def test_who_has_nothing_uses_the_demo_data(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    page.goto(f"{console.url}/datasets")
    expect(page.get_by_role("heading", name="No dataset yet")).to_be_visible()
    assert_accessible(page)
    assert sideways(page) == 0
    follow(page.get_by_role("button", name="Use the demo's dataset"))
    expect(page.get_by_role("heading", name="Ready to train on")).to_be_visible()
    expect(page.locator(".stats")).to_contain_text("Examples308on 308 lines")
    expect(page.locator(".histogram").first).to_contain_text("context of smollm2-135m-instruct: 2,048")
    assert_accessible(page)


@pytest.mark.one_database
def test_examples_are_shown_as_they_are_learned(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    lines = [json.dumps(WITH_TOOL), json.dumps(PAIR), *(chat_line(f"Q{n}?", f"A{n}.") for n in range(40))]
    with console.service.client() as client:
        file_id = upload(client, "".join(f"{line}\n" for line in lines).encode())
    page.goto(f"{console.url}/datasets/{file_id}/examples")
    tool, pair, chat = (page.locator("article").nth(place) for place in range(3))
    tool.get_by_text("1 tool it may call").click()
    expect(tool.locator(".tools")).to_contain_text("stock(item) How many there are")
    tool.get_by_text("calls stock").click()
    expect(tool.locator(".call pre")).to_have_text('{\n  "item": "Leek"\n}')
    expect(pair.locator(".answer").nth(0).locator(".learned").first).to_have_text("Yes, for 30 days.")
    expect(pair.locator(".answer").nth(1).locator(".learned").first).to_have_text("Read our terms.")
    assert chat.locator(".learned").all_inner_texts() == ["A0.", "<|im_end|>"]
    assert_accessible(page)
    assert sideways(page) == 0

    seen: list[str] = []
    while True:
        seen += page.locator("article h3").all_inner_texts()
        later = page.get_by_role("link", name="Later")
        if not later.count():
            break
        follow(later)
        expect(page.locator("article h3").first).to_have_text(f"Line {len(seen) + 1}")
    assert seen == [f"Line {number}" for number in range(1, 43)]
    follow(page.get_by_role("link", name="Earlier"))
    expect(page.locator("article h3").first).to_have_text("Line 31")
    page.get_by_label("Go to line").fill("42")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator("article h3")).to_have_text(["Line 42"])
    follow(page.get_by_role("link", name="Line 42"))
    expect(page.locator(".tokens .learned").last).to_have_text("<|im_end|>")
    expect(page.locator("pre.raw")).to_contain_text('"content": "A39."')
    assert_accessible(page)
    page.goto(f"{console.url}/datasets/{file_id}/examples?line=44")
    expect(page.get_by_text("The file has no line 44.")).to_be_visible()


@pytest.mark.one_database
def test_a_line_far_into_a_file_is_counted_up_to(
    console: Console, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.datasets.line_pages._CHUNK", 1024)
    monkeypatch.setattr("app.console.datasets.examples._FIRST_COUNT_SECONDS", -1.0)
    monkeypatch.setattr("app.console.datasets.examples._COUNT_SECONDS", -1.0)
    with console.service.client() as client:
        file_id = upload(client, training_bytes(60), purpose="evals")
    for path in ("examples?line=42", "lines/42"):
        page.goto(f"{console.url}/datasets/{file_id}/{path}")
        page.wait_for_url("**offset=**")
        expect(page.locator("article h3").first).to_have_text("Line 42")
    expect(page.locator("article")).to_have_count(1)
    page.goto(f"{console.url}/datasets/{file_id}/lines/99")
    expect(page.get_by_text("The file has no line 99.")).to_be_visible()


@pytest.mark.one_database
def test_words_are_searched_for_until_they_are_found(
    console: Console, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.console.datasets.examples._SEARCH_SECONDS", 0.0)
    lines = [chat_line(f"Soup {n}?", "Leek." if n % 3 else "Pea.") for n in range(36)]
    with console.service.client() as client:
        file_id = upload(client, "".join(f"{line}\n" for line in lines).encode())
    page.goto(f"{console.url}/datasets/{file_id}/examples")
    page.get_by_label("Words to find").fill("pea")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(10)
    expect(page.locator("mark").first).to_have_text("Pea")
    page.get_by_role("button", name="Go on searching").click()
    expect(page.get_by_text("12 found. Everything was searched.")).to_be_visible()
    assert page.locator("article h3").all_inner_texts() == [f"Line {n + 1}" for n in range(0, 36, 3)]
    page.get_by_label("Words to find").fill("nowhere")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()


HOSTILE = """<img src=x onerror=window.hacked=1><script>window.hacked=1</script>{{ 7 * 7 }}"""


@pytest.mark.one_database
def test_hostile_texts_are_texts(console: Console, page: Page) -> None:
    lines = [
        chat_line(HOSTILE, HOSTILE, name=HOSTILE),
        json.dumps({"messages": [{"role": HOSTILE, "content": HOSTILE}]}),
        HOSTILE,
    ]
    page.goto(f"{console.url}/datasets")
    choose(page, HOSTILE.replace("/", "") + ".jsonl", "".join(f"{line}\n" for line in lines).encode())
    page.wait_for_url("**/datasets/file-*")
    expect(page.locator(".findings tbody tr")).to_have_count(3)
    address = page.url
    for path in ("", "/examples", "/lines/1", "/lines/2", "/lines/3", "/delete"):
        page.goto(address + path)
        expect(page.locator("h1")).to_contain_text("<img src=x onerror=window.hacked=1>")
    page.goto(f"{address}/examples")
    page.get_by_label("Words to find").fill(HOSTILE)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(3)
    page.goto(f"{console.url}/datasets")
    expect(page.locator("#files")).to_contain_text("<script>")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0


@pytest.mark.one_database
def test_a_file_is_deleted_after_what_uses_it_was_told(
    console: Console, page: Page, assert_accessible: Callable[[Page], None]
) -> None:
    with console.service.client() as client:
        file_id = upload(client, training_bytes())
        job = client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file_id)
        page.goto(f"{console.url}/datasets/{file_id}")
        follow(page.get_by_role("link", name="Delete…"))
        expect(page.get_by_role("link", name=job.id)).to_be_visible()
        assert_accessible(page)
        follow(page.get_by_role("button", name="Delete the file"))
        page.wait_for_url("**/datasets?purpose=fine-tune")
        expect(page.get_by_role("heading", name="No dataset yet")).to_be_visible()
        assert not client.files.list().data


@pytest.mark.one_database
def test_a_role_that_only_reads_is_offered_nothing_else(console: Console, stranger: Page) -> None:
    with console.service.client() as client:
        file_id = upload(client, training_bytes())
    console.sign_in(stranger, console.key_with_role("read"))
    stranger.goto(f"{console.url}/datasets")
    expect(stranger.get_by_role("link", name="x.jsonl")).to_be_visible()
    expect(stranger.locator("[data-upload]")).to_have_count(0)
    stranger.goto(f"{console.url}/datasets/{file_id}")
    expect(stranger.get_by_role("heading", name="Ready to train on")).to_be_visible()
    expect(stranger.get_by_role("link", name="Delete…")).to_have_count(0)
    expect(stranger.get_by_role("link", name="Create a job")).to_have_count(0)
    stranger.goto(f"{console.url}/datasets/{file_id}/delete")
    expect(stranger.get_by_role("button", name="Delete the file")).to_have_count(0)


def test_nobody_sees_the_files_of_another_project(console: Console, stranger: Page) -> None:
    with console.service.client() as client:
        file_id = upload(client, training_bytes(), "secret.jsonl")
        client.post(
            "/uploads",
            body={"filename": "secret2.jsonl", "purpose": "fine-tune", "bytes": 9, "mime_type": "a/b"},
            cast_to=object,
        )
    console.sign_in(stranger, console.other_key)
    stranger.goto(f"{console.url}/datasets?purpose=all")
    expect(stranger.get_by_role("heading", name="No file yet")).to_be_visible()
    assert "secret" not in stranger.content()
    for path in ("", "/examples", "/lines/1", "/search?q=a", "/delete", "/lengths?base_model=x"):
        response = stranger.goto(f"{console.url}/datasets/{file_id}{path}")
        assert response is not None and response.status == 404, path


@pytest.mark.one_database
def test_no_file_can_be_chosen_before_a_script_takes_it(console: Console, page: Page) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/datasets.js", hold)
    page.goto(f"{console.url}/datasets", wait_until="commit")
    expect(page.locator("#files-to-upload")).to_be_disabled()
    wait_for(page, lambda: bool(held))
    held[0].continue_()
    expect(page.locator("#files-to-upload")).to_be_enabled()


@pytest.mark.one_database
def test_a_file_is_chosen_by_keyboard(console: Console, page: Page) -> None:
    chosen = {"name": "x.jsonl", "mimeType": "text/plain", "buffer": training_bytes()}
    # before the page is opened: the browser closes a chooser at once that nobody waits for yet
    page.on("filechooser", lambda chooser: chooser.set_files(chosen))
    page.goto(f"{console.url}/datasets")
    chooses = files_input(page)
    chooses.focus()
    expect(chooses).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/datasets/file-*")


@pytest.mark.one_database
def test_a_file_that_is_no_jsonl_says_so(console: Console, page: Page) -> None:
    with console.service.client() as client:
        file_id = upload(client, b"PK\x03\x04 an archive")
    page.goto(f"{console.url}/datasets/{file_id}/examples")
    expect(page.get_by_text("The file is a zip archive, not JSONL.")).to_be_visible()

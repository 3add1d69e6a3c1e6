"""`toque compare`, against a real API and a stand-in engine."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from junitparser import JUnitXml

from app.comparisons.models import Answer, Comparison
from app.completions.models import Engine
from app.core.database import database_now
from tests.app.comparisons.stub_engine import TUNED, StubEngine, add_tuned, lines, tuned_model_is_right
from tests.support.command import Service
from tests.support.comparison_results import add_comparison, candidate, regression, results
from tests.support.engine_stand_in import ENGINE_KEY, run_engine
from tests.support.service import BASE_MODEL


@pytest.fixture(scope="module")
def engine(service: Service) -> Iterator[StubEngine]:
    engine = StubEngine(tuned_model_is_right)
    add_tuned(service.database)
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        with run_engine(engine, socket):
            row = Engine(
                base_model=BASE_MODEL,
                url=f"unix:{socket}",
                api_key=ENGINE_KEY,
                status="ready",
                device="cpu",
                version="0",
                started_at=0.0,
                heartbeat_at=database_now() + 3600,
            )
            with service.database.writer() as session:
                session.add(row)
            yield engine
            with service.database.writer() as session:
                session.delete(row)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heldout.jsonl").write_bytes(lines(range(100, 140)))
    (tmp_path / "train.jsonl").write_bytes(lines(range(20)))
    (tmp_path / "system.txt").write_text("You know all pots.\n")
    return tmp_path


def arguments(folder: Path, *more: object) -> list[object]:
    given = ("--file", folder / "heldout.jsonl", "--base-model", BASE_MODEL, "--grader", "exact_match")
    return ["compare", *given, *more]


def candidates(folder: Path) -> list[object]:
    texts = ("base", f"prompt={folder / 'system.txt'}", f"few-shot=2:{folder / 'train.jsonl'}", TUNED)
    return [part for text in texts for part in ("--candidate", text)]


def test_from_files_to_a_verdict(service: Service, engine: StubEngine, folder: Path) -> None:
    junit = folder / "report.xml"
    done = service.run(*arguments(folder, *candidates(folder), "--wait", "--json", "--junit", junit))
    assert done.exit_code == 0, done.output
    comparison = json.loads(done.stdout)
    assert comparison["status"] == "succeeded"
    assert comparison["verdict"]["code"] == "fine_tuning_wins"
    scores = {each["name"]: each["score"] for each in comparison["candidates"]}
    assert scores == {"base": 0.0, "prompt": 0.25, "few-shot-2": 0.25, TUNED: 1.0}
    assert all(each["interval"]["low"] <= each["score"] for each in comparison["candidates"])
    assert "heldout.jsonl as file-" in done.stderr

    [suite] = JUnitXml.fromfile(str(junit))
    cases = {case.name: case for case in suite}
    assert set(cases) == {"verdict", *scores}
    assert "fine_tuning_wins" in cases["verdict"].system_out
    assert "Expected: Soup 100." in cases["base"].system_out
    assert "Expected" not in cases[TUNED].system_out

    shown = service.run("compare", "get", comparison["id"])
    assert shown.exit_code == 0, shown.output
    assert TUNED in shown.stdout
    assert "100.0 %" in shown.stdout
    assert "Verdict: fine_tuning_wins" in shown.stdout
    assert comparison["verdict"]["sentence"] in shown.stdout
    assert comparison["id"] in service.run("compare", "list").stdout
    items = service.run("compare", "items", comparison["id"], "--json").stdout.splitlines()
    assert len(items) == 40
    assert len(json.loads(items[0])["answers"]) == 4
    assert "Soup 139." in service.run("compare", "items", comparison["id"]).stdout

    page = folder / "report.html"
    assert service.run("compare", "report", comparison["id"], "--html", "-o", page).exit_code == 0
    html = page.read_text("utf-8")
    assert "<html" in html
    assert "<script" not in html
    assert TUNED in html
    assert TUNED in service.run("compare", "report", comparison["id"]).stdout
    again = service.run("compare", "cancel", comparison["id"])
    assert again.exit_code == 1
    assert "code comparison_succeeded" in again.stderr


def test_a_terminal_obeys_no_text(service: Service, engine: StubEngine, folder: Path) -> None:
    turns = [
        {"role": "user", "content": "\x1b[2J\x9b2J\x7f What is in pot number 3?"},
        {"role": "assistant", "content": "\x07Soup\r\n\t3."},
    ]
    (folder / "heldout.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    done = service.run(*arguments(folder, "--candidate", "base", "--wait", "--json"))
    shown = service.run("compare", "items", json.loads(done.stdout)["id"]).stdout
    assert "line 1: ␛[2J\ufffd2J␡ What is in pot number 3?" in shown
    assert "reference: ␇Soup␍\n" in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def test_what_is_uploaded_already_is_not_sent_again(
    service: Service, engine: StubEngine, folder: Path
) -> None:
    files: list[str] = []
    for _ in range(2):
        created = service.run(*arguments(folder, "--candidate", "base", "--json"))
        assert created.exit_code == 0, created.output
        files.append(json.loads(created.stdout)["file"])
    assert files[0] == files[1]
    assert "Uploaded" not in created.stderr
    comparison_id = json.loads(created.stdout)["id"]
    waited = service.run("compare", "wait", comparison_id, "--markdown")
    assert waited.exit_code == 0, waited.output
    assert waited.stdout.startswith("###")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--candidate", "prompt=nowhere.txt"), "nowhere.txt"),
        (("--candidate", "few-shot=8"), "few-shot=8"),
        (("--candidate", "{"), "not JSON"),
        (("--candidate", "base", "--regression-file", "nowhere"), "nowhere"),
        ((), "--candidate"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    service: Service, folder: Path, change: tuple[str, ...], named: str
) -> None:
    refused = service.run(*arguments(folder, *change))
    assert refused.exit_code == 2, refused.output
    assert named in refused.stderr


def test_what_the_service_refuses_names_the_field(service: Service, folder: Path) -> None:
    refused = service.run(*arguments(folder, "--candidate", "base", "--candidate", "ft:none"))
    assert refused.exit_code == 1
    assert "param candidates[1].model" in refused.stderr


def test_items_say_why_an_answer_was_not_graded(service: Service) -> None:
    comparison_id = add_comparison(service.database, results([candidate("new"), candidate("old")], []))
    with service.database.writer() as session:
        answers = session.query(Answer).filter_by(comparison_id=comparison_id, question=0)
        answers.filter_by(candidate=0).update({"score": None, "error": "the pattern took too long"})
        answers.filter_by(candidate=1).update({"text": None, "score": None, "error": "no answer in time"})
    shown = service.run("compare", "items", comparison_id).stdout
    assert "(the pattern took too long)" in shown
    assert "-  old: (no answer in time)\n" in shown
    assert "Answer 1 of @old" in shown


def test_markdown_has_the_general_questions_that_were_lost(service: Service) -> None:
    found = results([candidate("new"), candidate("base", "base")], [], [regression("new", 0.3)])
    comparison_id = add_comparison(service.database, found)
    with service.database.writer() as session:
        comparison = session.get_one(Comparison, comparison_id)
        comparison.regression_file_id = comparison.file_id
        answers = session.query(Answer).filter_by(comparison_id=comparison_id, question=0, candidate=1)
        answers.update({"text": "Paris", "score": 1.0})
    for command in (("get", comparison_id, "--markdown"), ("report", comparison_id)):
        text = service.run("compare", *command).stdout
        assert "Where new lost most on general questions:" in text
        assert "| Question 0 \\| &lt;b&gt;? | Paris | 100.0 % | Answer 0 of &#64;new" in text

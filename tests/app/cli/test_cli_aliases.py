"""`toque aliases` and `toque promote`, against a real API, as a pipeline runs them."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from junitparser import Failure, JUnitXml

from app.core.database import Database
from tests.support.aliases import add_model
from tests.support.command import Service
from tests.support.comparison_results import add_comparison, candidate, pair, results
from tests.support.service import BASE_MODEL


@pytest.fixture
def alias() -> str:
    return f"house-style:{secrets.token_hex(4)}"


@pytest.fixture
def models(service: Service) -> list[str]:
    return [add_model(service.database, f"{name}-{secrets.token_hex(4)}") for name in ("old", "new")]


def compared(database: Database, model: str, *, lead: float) -> str:
    found = results(
        [
            candidate("base", "base", score=0.9 - lead),
            candidate("hostile | <name>", "prompt", score=0.9 - lead),
            candidate("new", model=model, score=0.9),
        ],
        [pair("new", "base", lead), pair("hostile | <name>", "new", -lead)],
    )
    return add_comparison(database, found)


@pytest.mark.parametrize("command", ["list", "get", "set", "history", "rollback", "delete"])
def test_every_command_has_an_example(service: Service, command: str) -> None:
    assert f"Example: toque aliases {command}" in service.run("aliases", command, "--help").output


def test_an_alias_from_first_to_last(service: Service, alias: str, models: list[str]) -> None:
    created = service.run("aliases", "set", alias, "--model", models[0], "--json")
    assert created.exit_code == 0, created.output
    assert json.loads(created.stdout)["model"] == models[0]
    canary = service.run(
        *("aliases", "set", alias, "--model", f"{models[0]}=95", "--model", f"{models[1]}=5"),
        *("--reason", "a first taste"),
    )
    assert f"{models[0]} 95%, {models[1]} 5%" in canary.stdout
    assert alias in service.run("aliases", "list").stdout
    assert [each["name"] for each in json.loads(service.run("aliases", "list", "--json").stdout)].count(
        alias
    ) == 1

    lost = service.run("aliases", "set", alias, "--model", models[1], "--version", "1")
    assert (lost.exit_code, "code alias_version_conflict" in lost.stderr) == (1, True)
    back = json.loads(service.run("aliases", "rollback", alias, "--reason", "bland", "--json").stdout)
    assert (back["model"], back["version"]) == (models[0], 3)
    nowhere = service.run("aliases", "rollback", alias)
    assert (nowhere.exit_code, "code nothing_to_roll_back" in nowhere.stderr) == (1, True)
    told = service.run("aliases", "history", alias).stdout
    assert "a first taste" in told
    assert [
        change["kind"] for change in json.loads(service.run("aliases", "history", alias, "--json").stdout)
    ] == [
        "rolled_back",
        "set",
        "created",
    ]

    in_use = service.run("aliases", "get", alias, "--json")
    assert json.loads(in_use.stdout)["version"] == 3
    assert service.run("aliases", "delete", alias).exit_code == 0
    gone = service.run("aliases", "get", alias)
    assert (gone.exit_code, "code alias_not_found" in gone.stderr) == (1, True)


def test_a_gate_that_says_yes(service: Service, alias: str, models: list[str], tmp_path: Path) -> None:
    comparison = compared(service.database, models[1], lead=0.5)
    rules = ["--rule", "min_score=0.8", "--rule", "beats=prompted", "--rule", "beats=current:0.02"]
    command = ["promote", alias, "--model", models[1], "--comparison", comparison, *rules]

    dry = service.run(*command, "--dry-run", "--json")
    assert dry.exit_code == 0, dry.output
    assert (json.loads(dry.stdout)["passed"], json.loads(dry.stdout)["promoted"]) == (True, False)
    assert service.run("aliases", "get", alias).exit_code == 1

    report = tmp_path / "report.xml"
    done = service.run(*command, "--json", "--junit", report, "--reason", "release 7")
    assert done.exit_code == 0, done.output
    promotion = json.loads(done.stdout)
    assert (promotion["promoted"], promotion["version"]) == (True, 1)
    [suite] = JUnitXml.fromfile(str(report))
    assert (suite.tests, suite.failures) == (3, 0)
    assert [case.name for case in suite] == ["min_score", "beats:prompted", "beats:current"]
    shown = service.run(*command)
    assert "points to" in shown.stdout
    assert "(version 2)" in shown.stdout


def test_a_gate_that_says_no(service: Service, alias: str, models: list[str], tmp_path: Path) -> None:
    comparison = compared(service.database, models[1], lead=0.05)
    report = tmp_path / "report.xml"
    command = ["promote", alias, "--model", models[1], "--comparison", comparison]
    command += ["--rule", "min_score=0.8", "--rule", "beats=prompted", "--junit", str(report)]

    refused = service.run(*command, "--json")
    assert refused.exit_code == 5, refused.output
    promotion = json.loads(refused.stdout)
    assert [(rule["rule"], rule["passed"]) for rule in promotion["rules"]] == [
        ("min_score", True),
        ("beats:prompted", False),
    ]
    assert not promotion["promoted"]
    assert service.run("aliases", "get", alias).exit_code == 1

    [suite] = JUnitXml.fromfile(str(report))
    assert (suite.tests, suite.failures) == (2, 1)
    passed, failed = suite
    assert (passed.result, passed.system_out) == ([], promotion["rules"][0]["sentence"])
    [failure] = failed.result
    assert isinstance(failure, Failure)
    assert failure.message == promotion["rules"][1]["sentence"]
    assert failure.text is not None
    # The questions that it did worst on, what XML cannot carry replaced.
    assert "Question: Question 0 | <b>?\nExpected: Reference 0\n" in failure.text
    assert "Answer:   Answer 0 of @new\ufffd\ufffd\nScore:    0" in failure.text
    assert failure.text.index("Question 0") < failure.text.index("Question 1")
    assert "Question 2" not in failure.text, "that one was right"

    comment = service.run(*command, "--markdown")
    assert comment.exit_code == 5
    text = comment.stdout
    assert f"`{models[1]}` does not pass the gate" in text
    assert "| beats:prompted | **refused** |" in text
    assert "| hostile \\| &lt;name> | 85.0 % |" in text
    assert "| Question 0 \\| &lt;b>? | Reference 0 |" in text
    assert "@" not in text, "a model's words mention nobody"
    assert "Fine-tuning wins." in text
    assert (service.run(*command, "--dry-run").exit_code, "REFUSED" in service.run(*command).stdout) == (
        5,
        True,
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--rule", "min_score"),
        ("--rule", "min_score=high"),
        ("--rule", "min_score=nan"),
        ("--rule", "max_latency_ratio=inf"),
        ("--rule", "beats=base:nan"),
        ("--rule", "taste=1"),
        ("--rule", "min_score=1", "--rule", "min_score=0"),
        ("--rule", "beats=base:much"),
        ("--rule", "min_score=1", "--json", "--markdown"),
        ("--rule", "min_score=1", "--junit", "/nowhere/report.xml"),
        (),
    ],
)
def test_wrong_usage(service: Service, alias: str, options: tuple[str, ...]) -> None:
    done = service.run("promote", alias, "--model", "ft:m", "--comparison", "cmp_1", *options)
    assert done.exit_code == 2, done.output


def test_what_the_service_refuses_is_no_verdict(service: Service, alias: str, models: list[str]) -> None:
    comparison = compared(service.database, models[1], lead=0.5)
    for model, code in ((models[0], "model_not_compared"), ("ft:none", "model_not_found")):
        done = service.run(
            "promote", alias, "--model", model, "--comparison", comparison, "--rule", "min_score=0"
        )
        assert (done.exit_code, f"code {code}" in done.stderr) == (1, True), done.output
    done = service.run(
        *("promote", alias, "--model", BASE_MODEL, "--comparison", comparison),
        *("--rule", "beats=someone"),
    )
    assert (done.exit_code, "rules.beats[0]" in done.stderr) == (1, True), done.output

"""docs/clients.md names every client, its version and all that its scripts try; none of them runs here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.clients.environments import HERE, SCRIPTS, pins
from tests.clients.page import render, versions
from tests.clients.registry import CLIENTS, Client
from tests.clients.results import Attempt, Result, read, readable

PAGE = (HERE.parents[1] / "docs" / "clients.md").read_text("utf-8")


@pytest.mark.parametrize("name", CLIENTS)
def test_the_page_is_that_of_the_scripts(name: str) -> None:
    client = CLIENTS[name]
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| [{client.title}]")]
    assert row.split("|")[2].strip() == versions(name)
    section = PAGE.partition(f"\n## {client.title}\n")[2].partition("\n## ")[0]
    assert client.change in section
    tried = re.findall(r"^\| (.+?) \| (?:works|not possible|fails)", section, re.MULTILINE)
    # A test with parameters stands there once for each.
    assert {
        words.partition(" (Mode.")[0].partition(" (json")[0].partition(" (function")[0] for words in tried
    } == set(_tried(client))
    assert row.split("|")[3].strip() == str(len(tried))


def test_what_was_found_is_read_from_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite name="pytest"><testcase name="test_it_works[small]" time="1.5"/>'
        '<testcase name="test_it_fails" time="0"><failure message="assert 1 == 2">more</failure></testcase>'
        '<testcase name="test_it_cannot" time="0"><skipped type="pytest.xfail" message="why"/></testcase>'
        '<testcase name="test_it_is_left_out" time="0"><skipped type="pytest.skip" message="no"/></testcase>'
        "</testsuite></testsuites>"
    )
    found = read("openai-python", report, "")
    assert found.attempts == [
        Attempt("it works (small)", 1.5),
        Attempt("it fails", 0.0, failure="assert 1 == 2\nmore"),
        Attempt("it cannot", 0.0, limitation="why"),
        Attempt("it is left out", 0.0, failure="it was not tried: no", limitation="no"),
    ]
    page = render([found])
    assert "| 4 | 2 fail; 1 not possible |" in page
    assert "| it cannot | not possible: why |" in page


def test_a_client_that_writes_no_report_or_half_of_one_has_failed(tmp_path: Path) -> None:
    half = tmp_path / "half.xml"
    half.write_text("<testsuites><testsuite>")
    for report in (half, tmp_path / "none.xml"):
        assert read("ai-sdk", report, "node: not found") == Result(
            "ai-sdk", [Attempt("its scripts end", 0.0, failure="node: not found")]
        )


def test_every_client_is_pinned_and_no_malicious_litellm() -> None:
    for client in CLIENTS.values():
        assert all(pins(client.environment)[package] for package in client.packages)
    assert pins("litellm")["litellm"] not in ("1.82.7", "1.82.8")


def _tried(client: Client) -> list[str]:
    """The names of a client's tests, read from its source."""
    path = SCRIPTS / client.scripts
    if path.suffix == ".mjs":
        return re.findall(r"^test\('(.+)', async", path.read_text("utf-8"), re.MULTILINE)
    names: list[str] = []
    for file in [path] if path.suffix else sorted(path.glob("*.py")):
        functions = ast.parse(file.read_text("utf-8")).body
        names += [each.name for each in functions if isinstance(each, ast.FunctionDef)]
    return [readable(name) for name in names if name.startswith("test_")]

"""A comparison in the terminal, and for machines that read JUnit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.cli.junit import xml_text
from app.cli.output import print_fields, print_table, stdout
from app.comparisons.report.documents import given_text, reference_text
from app.comparisons.report.figures import percent
from app.core.control_characters import visible

_MOST_QUESTIONS = 20


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print the progress or, once the comparison has ended, every candidate's score and the verdict."""
    done, total = comparison["progress"]["done"], comparison["progress"]["total"]
    error, excluded = comparison["error"], comparison["excluded"]["count"]
    print_fields(
        {
            "id": comparison["id"],
            "name": comparison["name"],
            "status": comparison["status"],
            "error": f"{error['message']} ({error['code']})" if error else None,
            "questions": comparison["questions"],
            "left out": f"{excluded} that were trained on" if excluded else None,
            "answers": f"{done:,} of {total:,}",
        }
    )
    if comparison["results"] is None:
        return
    rows = [
        (
            each["name"],
            percent(each["score"]),
            f"{percent(each['interval']['low'])} to {percent(each['interval']['high'])}",
            each["failures"],
            f"{each['tokens']['per_1000_questions']:,}",
            *(f"{each['latency'][at]:.2f} s" if each["latency"] else None for at in ("p50", "p95")),
        )
        for each in comparison["candidates"]
    ]
    headings = ("CANDIDATE", "SCORE", "95 % INTERVAL", "FAILED", "TOKENS PER 1,000", "P50", "P95")
    stdout.print()
    print_table(headings, rows)
    stdout.print()
    stdout.print(visible(comparison["verdict"]["sentence"]), soft_wrap=True)
    stdout.print(f"Verdict: {comparison['verdict']['code']}", style="bold")


def answer_or_error(answer: dict[str, Any]) -> str:
    """Return the answer's text, and why it failed or was not graded."""
    error = f"({answer['error']})" if answer["error"] else ""
    said = given_text(answer)
    return error if said is None else f"{said} {error}".rstrip()


def write_junit(path: Path, comparison: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
    """Write a JUnit suite: a test case for the verdict, and one for each candidate with its failed questions.

    A verdict that fine-tuning hurts is a failure; a candidate that left questions unanswered is an error.
    """
    from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite  # noqa: PLC0415 - seldom needed

    verdict = comparison["verdict"]
    suite = TestSuite(xml_text(f"toque compare {comparison['name'] or comparison['id']}"))
    case = TestCase("verdict", classname=comparison["id"])
    case.system_out = xml_text(f"{verdict['code']}: {verdict['sentence']}")
    if verdict["code"] == "fine_tuning_hurts":
        case.result = [Failure(xml_text(verdict["sentence"]), verdict["code"])]
    suite.add_testcase(case)
    for candidate in comparison["candidates"]:
        case = TestCase(xml_text(candidate["name"]), classname=comparison["id"])
        case.system_out = xml_text("\n\n".join([_summary(candidate), *_wrong(candidate["name"], items)]))
        if candidate["failures"]:
            message = f"{candidate['failures']} of {candidate['questions']} questions were not answered"
            case.result = [Error(message, "unanswered")]
        suite.add_testcase(case)
    report = JUnitXml("toque")
    report.add_testsuite(suite)
    report.write(str(path), pretty=True)  # pyright: ignore[reportUnknownMemberType]


def _summary(candidate: dict[str, Any]) -> str:
    interval = candidate["interval"]
    return (
        f"{percent(candidate['score'])} of {candidate['questions']} questions "
        f"(95 % interval {percent(interval['low'])} to {percent(interval['high'])})"
    )


def _wrong(candidate: str, items: Sequence[dict[str, Any]]) -> list[str]:
    """Return the first questions on which the candidate did not get the full score."""
    wrong = [
        (item, answer)
        for item in items
        for answer in item["answers"]
        if answer["candidate"] == candidate and (answer["score"] or 0.0) < 1.0
    ]
    return [
        f"{item['file']} line {item['line']}\nQuestion: {item['messages'][-1].get('content')}\n"
        f"Expected: {reference_text(item)}\nAnswer:   {answer_or_error(answer)}"
        for item, answer in wrong[:_MOST_QUESTIONS]
    ]

"""What a gate said, for machines that read JUnit and for people who read a change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from app.cli.client import get_object
from app.cli.compare_report import answer_or_error
from app.cli.junit import xml_text
from app.comparisons.report.documents import reference_text
from app.comparisons.report.figures import percent
from app.core.control_characters import visible

if TYPE_CHECKING:
    from openai import OpenAI

_MOST_QUESTIONS = 20
_LONGEST_TEXT = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """A promotion and the comparison that it is based on, as the API returned them."""

    promotion: dict[str, Any]
    comparison: dict[str, Any]

    @property
    def candidate(self) -> str | None:
        """The name of the model's candidate in the comparison."""
        model = self.promotion["model"]
        names = (
            each["name"]
            for each in self.comparison["candidates"]
            if each["type"] in ("model", "base") and model in (each["model"], each.get("requested_model"))
        )
        return next(names, None)

    @property
    def sentence(self) -> str:
        """Whether the alias was moved, as styled text."""
        return self.sentence_of(self.promotion)

    @staticmethod
    def sentence_of(promotion: dict[str, Any]) -> str:
        """Return a sentence that says whether the alias was moved."""
        alias, model = promotion["alias"], promotion["model"]
        if promotion["promoted"]:
            return f"{alias} points to {model} now (version {promotion['version']})."
        if promotion["passed"]:
            return f"{alias} may point to {model}; this was a dry run."
        return f"{alias} stays where it is: the gate says no."


@dataclass(frozen=True, slots=True)
class FailedQuestion:
    """A question on which the model did not get the full score."""

    question: str
    reference: str
    answer: str
    score: float

    def __str__(self) -> str:
        return (
            f"Question: {self.question}\nExpected: {self.reference}\n"
            f"Answer:   {self.answer}\nScore:    {self.score:g}"
        )


def failed_questions(client: OpenAI, outcome: Outcome) -> list[FailedQuestion]:
    """Return the questions on which the model scored lowest, lowest first."""
    failed: list[FailedQuestion] = []
    path, after = f"/comparisons/{quote(outcome.comparison['id'], safe='')}/items", ""
    while True:
        page = get_object(client, f"{path}?limit=100{after}")
        for item in page["data"]:
            if item["file"] != outcome.comparison["file"]:
                continue  # a general question
            answers = (each for each in item["answers"] if each["candidate"] == outcome.candidate)
            answer = next(answers, None)
            if answer is not None and (answer["score"] or 0.0) < 1.0:
                failed.append(
                    FailedQuestion(
                        _short(_last_text(item["messages"])),
                        _short(reference_text(item)),
                        _short(answer_or_error(answer)),
                        answer["score"] or 0.0,
                    )
                )
        if not page["has_more"]:
            return sorted(failed, key=lambda each: each.score)[:_MOST_QUESTIONS]
        after = f"&after={quote(page['data'][-1]['id'], safe='')}"


def write_junit(path: Path, outcome: Outcome, failed: Sequence[FailedQuestion]) -> None:
    """Write a JUnit suite with a test case for each rule; one that is not met lists the failed questions."""
    from junitparser import Failure, JUnitXml, TestCase, TestSuite  # noqa: PLC0415 - few commands need it

    promotion = outcome.promotion
    suite = TestSuite(xml_text(f"toque promote {promotion['alias']}"))
    for rule in promotion["rules"]:
        case = TestCase(xml_text(rule["rule"]), classname=xml_text(promotion["model"]))
        sentence = xml_text(rule["sentence"])
        if rule["passed"]:
            case.system_out = sentence
        else:
            failure = Failure(sentence, "gate_refused")
            failure.text = xml_text("\n\n".join([rule["sentence"], *(str(each) for each in failed)]))
            case.result = [failure]
        suite.add_testcase(case)
    report = JUnitXml("toque")
    report.add_testsuite(suite)
    report.write(str(path), pretty=True)  # pyright: ignore[reportUnknownMemberType]


def markdown(outcome: Outcome, failed: Sequence[FailedQuestion]) -> str:
    """Return Markdown with the rules, the candidates and the verdict, and the failed questions folded."""
    promotion, comparison = outcome.promotion, outcome.comparison
    verdict: dict[str, Any] = comparison.get("verdict") or {}
    title = "passes the gate" if promotion["passed"] else "does not pass the gate"
    lines = [
        f"### `{promotion['model']}` {title}",
        "",
        _escaped(outcome.sentence),
        "",
        "| rule | | why |",
        "|---|---|---|",
        *(
            f"| {_escaped(rule['rule'])} | {'passed' if rule['passed'] else '**refused**'} "
            f"| {_escaped(rule['sentence'])} |"
            for rule in promotion["rules"]
        ),
        "",
        "| candidate | score | 95 % interval | failures |",
        "|---|---|---|---|",
        *(
            f"| {_escaped(each['name'])} | {percent(each['score'])} "
            f"| {percent(each['interval']['low'])} to {percent(each['interval']['high'])} "
            f"| {each['failures']} |"
            for each in comparison["candidates"]
            if each.get("score") is not None
        ),
        "",
        f"{_escaped(verdict.get('sentence', ''))} (comparison `{comparison['id']}`)",
    ]
    if failed:
        lines += ["", f"<details><summary>{len(failed)} questions that it did worst on</summary>", ""]
        lines += ["| question | expected | answer | score |", "|---|---|---|---|"]
        lines += [
            f"| {_escaped(each.question)} | {_escaped(each.reference)} "
            f"| {_escaped(each.answer)} | {each.score:g} |"
            for each in failed
        ]
        lines += ["", "</details>"]
    return "\n".join(lines)


def _last_text(messages: Sequence[dict[str, Any]]) -> str:
    """Return the text of the last turn before the answer."""
    content: Any = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content)  # pyright: ignore
    return content or ""


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"


def _escaped(text: str) -> str:
    """Escape text for a table's cell, so that a model's answer is neither markup nor a mention of a user."""
    text = visible(" ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("@", "&#64;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)

"""A comparison as its page shows it: the same figures as the API's and the report's, in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.comparisons import service
from app.comparisons.differences import Difference, differs, is_general, is_held_out
from app.comparisons.models import Comparison
from app.comparisons.plan import Plan
from app.comparisons.report.documents import (
    candidate_labels,
    given_text,
    message_text,
    reference_text,
    shortened,
)
from app.comparisons.results import ComparisonResults, PairResult
from app.comparisons.schemas import ComparisonObject, ItemObject
from app.core.control_characters import visible

PAGE = 10
MAX_TEXT = 4000
"""The number of characters of a text that the page shows, as the report does."""
SHOWN = ("all", "wins", "losses", "ties", "failed", "general")


@dataclass(frozen=True, slots=True)
class Shown:
    """Which answers are looked at: of two candidates by their names, and where they differ."""

    one: str
    other: str
    show: str
    after: str | None


@dataclass(frozen=True, slots=True)
class Reply:
    """A candidate's answer to a question."""

    candidate: str
    text: str | None
    score: float | None
    error: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answers: those of the two candidates that are looked at, and the others."""

    line: int
    turns: Sequence[tuple[str, str]]
    reference: str
    chosen: Sequence[Reply]
    others: Sequence[Reply]


@dataclass(frozen=True, slots=True)
class Answers:
    """A page of questions with their answers."""

    shown: Shown
    questions: Sequence[Asked]
    after: str | None
    pair: PairResult | None
    """The two candidates' result, seen from the first; None until there is one."""


def choose(plan: Plan, results: ComparisonResults | None, one: str, other: str, show: str) -> Shown:
    """Return what to look at: what is asked for or, if that is not there, what the verdict is about."""
    names = [candidate.name for candidate in plan.candidates]
    verdict = results.verdict if results else None
    preferred = [one, verdict.tuned if verdict else None, *names]
    first = next(name for name in preferred if name in names)
    rivals = [other, verdict.prompted if verdict else None, *names, first]
    second = next(name for name in rivals if name in names and (name != first or len(names) == 1))
    return Shown(first, second, show if show in SHOWN else "all", None)


def read_answers(
    session: Session, comparison: Comparison, plan: Plan, results: ComparisonResults | None, shown: Shown
) -> Answers:
    """Return a page of the questions that are looked at.

    Raises:
        InvalidRequestError: `after` is none of these questions.
    """
    names = [candidate.name for candidate in plan.candidates]
    places = names.index(shown.one), names.index(shown.other)
    only = [is_general(plan.questions) if shown.show == "general" else is_held_out(plan.questions)]
    difference = _difference(shown.show)
    if difference is not None:
        only.append(differs(difference, *places))
    rows, has_more = service.list_items(session, comparison, after=shown.after, limit=PAGE, only=only)
    items = [ItemObject.of(comparison, plan, *row).model_dump(mode="json") for row in rows]
    return Answers(
        shown,
        [_asked(item, (shown.one, shown.other)) for item in items],
        rows[-1][0].id if has_more else None,
        results.find_pair(shown.one, shown.other) if results else None,
    )


def labels_of(shown: ComparisonObject) -> dict[str, str]:
    """Return what the page calls each candidate and each model."""
    if shown.results:
        return candidate_labels(shown.results)
    return {name: name for each in shown.candidates for name in (each.name, each.model)}


def _difference(show: str) -> Difference | None:
    match show:
        case "wins" | "losses" | "ties" | "failed":
            return show
        case _:
            return None


def _asked(item: dict[str, Any], chosen: tuple[str, str]) -> Asked:
    replies = {
        answer["candidate"]: Reply(
            answer["candidate"],
            None if (text := given_text(answer)) is None else _text(text),
            answer["score"],
            answer["error"],
            answer["latency"],
        )
        for answer in item["answers"]
    }
    return Asked(
        item["line"],
        [(turn["role"], _text(message_text(turn))) for turn in item["messages"]],
        _text(reference_text(item)),
        [replies[name] for name in dict.fromkeys(chosen) if name in replies],
        [reply for name, reply in replies.items() if name not in chosen],
    )


def _text(text: str) -> str:
    return visible(shortened(text, MAX_TEXT))

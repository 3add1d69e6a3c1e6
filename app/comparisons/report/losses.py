"""The questions that a fine-tuned model answered worse than another candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from app.comparisons.results import ComparisonResults, Verdict

Document = Mapping[str, Any]
"""An object as the API returns it."""


class Loss(NamedTuple):
    """A question that the fine-tuned model answered worse."""

    item: Document
    tuned: Document
    """The fine-tuned model's answer."""
    other: Document
    """The answer of the best prompted candidate or, to a general question, of the base."""
    lost: float
    """The difference of the scores, above 0."""


def held_out_losses(items: Sequence[Document], verdict: Verdict) -> list[Loss]:
    """Return where fine-tuning lost against the best prompted candidate, the largest loss first."""
    found: list[Loss] = []
    for item in items:
        answers = _answers(item)
        found += _loss(item, answers.get(verdict.tuned), answers.get(verdict.prompted))
    return sorted(found, key=lambda loss: -loss.lost)


def general_losses(comparison: Document, items: Sequence[Document], results: ComparisonResults) -> list[Loss]:
    """Return where the model lost against its base on general questions, the largest loss first."""
    tuned, shown = {found.candidate for found in results.regression}, shown_general_candidate(results)
    found: list[Loss] = []
    for item in items:
        if item.get("file") != comparison.get("regression_file"):
            continue
        answers = _answers(item)
        base = next((answer for name, answer in answers.items() if name not in tuned), None)
        found += _loss(item, answers.get(shown), base)
    return sorted(found, key=lambda loss: -loss.lost)


def shown_general_candidate(results: ComparisonResults) -> str | None:
    """Return the candidate whose general answers are shown: the verdict's, if it was asked any."""
    tuned = [found.candidate for found in results.regression]
    return results.verdict.tuned if results.verdict.tuned in tuned else next(iter(tuned), None)


def _answers(item: Document) -> dict[str | None, Document]:
    return {answer["candidate"]: answer for answer in item["answers"]}


def _loss(item: Document, tuned: Document | None, other: Document | None) -> list[Loss]:
    if tuned is None or other is None:
        return []
    lost = (other.get("score") or 0) - (tuned.get("score") or 0)
    return [Loss(item, tuned, other, lost)] if lost > 0 else []

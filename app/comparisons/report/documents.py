"""What both reports read from the API's objects."""

from __future__ import annotations

from app.comparisons.questions import answer_text
from app.comparisons.report.losses import Document
from app.comparisons.results import ComparisonResults
from app.comparisons.tool_calls import turn_text

TITLES = {
    "fine_tuning_wins": "Fine-tuning wins",
    "prompting_is_enough": "Prompting is enough",
    "no_difference_shown": "No difference shown",
    "fine_tuning_hurts": "Fine-tuning hurts",
    "not_enough_data": "Not enough data",
}
"""The title of a report by its verdict."""


def read_results(comparison: Document) -> ComparisonResults | None:
    """Return the comparison's results, or None if there are none yet."""
    return ComparisonResults.model_validate(comparison["results"]) if comparison.get("results") else None


def message_text(message: Document) -> str:
    """Return a turn of a question for a person to read."""
    calls = message.get("tool_calls")
    return turn_text(answer_text(message.get("content"), calls), calls)


def reference_text(item: Document) -> str:
    """Return an item's reference for a person to read."""
    return turn_text(item["reference"], item.get("reference_tool_calls"))


def given_text(answer: Document) -> str | None:
    """Return an item's answer for a person to read, or None if there is none."""
    return None if answer["text"] is None else turn_text(answer["text"], answer.get("tool_calls"))


def shortened(text: str | None, length: int) -> str:
    """Return the text, cut off after `length` characters."""
    text = text or ""
    return text if len(text) <= length else f"{text[:length]}…"

"""What both reports read from the API's objects."""

from __future__ import annotations

from app.comparisons.questions import answer_text
from app.comparisons.report.losses import Document
from app.comparisons.results import ComparisonResults

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


def turn_text(message: Document) -> str:
    """Return a turn's text, or its tool calls."""
    return answer_text(message.get("content"), message.get("tool_calls"))


def shortened(text: str | None, length: int) -> str:
    """Return the text, cut off after `length` characters."""
    text = text or ""
    return text if len(text) <= length else f"{text[:length]}…"

"""What reports and pages read from the API's objects."""

from __future__ import annotations

from app.comparisons.questions import answer_text
from app.comparisons.report.losses import Document
from app.comparisons.report.model_names import short_names
from app.comparisons.results import ComparisonResults, SliceResult
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


def candidate_labels(results: ComparisonResults) -> dict[str, str]:
    """Return what tables and charts call each candidate and each model."""
    return short_names(name for each in results.candidates for name in (each.name, each.model))


def slice_rows(results: ComparisonResults) -> list[tuple[str, int, list[SliceResult]]]:
    """Return a row for each key and value: its title, the number of questions, each candidate's result."""
    rows: dict[tuple[str, str], list[SliceResult]] = {}
    for candidate in results.candidates:
        for part in candidate.slices:
            rows.setdefault((part.key, part.value), []).append(part)
    return [(f"{key}: {value}", parts[0].questions, parts) for (key, value), parts in rows.items()]


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

"""A comparison as Markdown, for a comment on a pull request.

It is made from what the API returns (`GET /v1/comparisons/{id}` and its items), so any client can make it.
Whatever models and files say stays plain text in it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from app.comparisons.report.documents import TITLES, message_text, read_results, shortened
from app.comparisons.report.figures import interval, p_value, percent, seconds, signed_points
from app.comparisons.report.losses import Document, Loss, general_losses
from app.comparisons.results import CandidateResult, ComparisonResults, PairResult
from app.core.control_characters import visible

MAX_LOSSES = 5
"""The number of lost general questions that are shown."""
MAX_CELL = 160
"""The number of characters of an answer that are shown."""
_MARKUP = re.compile(r"([\\`*_\[\]|~#])")


def render_markdown(comparison: Document, items: Sequence[Document] = ()) -> str:
    """Return the verdict, the scores, and how the fine-tuned model compares with the others.

    Args:
        comparison: the comparison object; without results, the Markdown tells its status.
        items: the comparison's items, needed if general questions were asked: those that were lost are shown.
    """
    results = read_results(comparison)
    if results is None:
        return f"### Comparison {_plain(comparison['id'])} is {_plain(comparison['status'])}\n"
    verdict = results.verdict
    lines = [f"### {TITLES[verdict.code]}", "", _plain(verdict.sentence), "", *_score_table(results)]
    lines += _pair_table([pair for pair in results.pairs if verdict.tuned in {pair.a, pair.b}], verdict.tuned)
    for found in results.regression:
        lines += [
            "",
            f"General questions: {_plain(found.candidate)} {percent(found.score)}, its base "
            f"{percent(found.base_score)}, a difference of {signed_points(-found.loss)} points "
            f"(95 % interval {signed_points(-found.interval.high)} to {signed_points(-found.interval.low)}).",
        ]
    lines += _loss_table(general_losses(comparison, items, results)[:MAX_LOSSES])
    for curve in results.checkpoints:
        lines += ["", f"Checkpoints of {_plain(curve.job)}: {_plain(curve.sentence)}"]
    return "\n".join([*lines, "", _footer(comparison, verdict.questions)]) + "\n"


def _footer(comparison: Document, questions: int) -> str:
    counted = f"{questions:,} held-out questions"
    if excluded := int((comparison.get("excluded") or {"count": 0})["count"]):
        counted += f"; {excluded:,} more were left out, since training files have them, too"
    return f"{counted}. Comparison {_plain(comparison['id'])}, base model {_plain(comparison['model'])}."


def _score_table(results: ComparisonResults) -> list[str]:
    return [
        "| candidate | score | 95 % interval | failures | tokens per 1,000 questions | p50 | p95 |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(_score_row(found, is_tuned=found.name == results.verdict.tuned) for found in results.candidates),
    ]


def _score_row(found: CandidateResult, *, is_tuned: bool) -> str:
    name = _plain(found.name)
    cells = [
        f"**{name}**" if is_tuned else name,
        percent(found.score),
        interval(found.interval),
        str(found.failures),
        f"{found.tokens.per_1000_questions:,}",
        seconds(found.latency.p50) if found.latency else "",
        seconds(found.latency.p95) if found.latency else "",
    ]
    return f"| {' | '.join(cells)} |"


def _pair_table(pairs: Sequence[PairResult], first: str | None) -> list[str]:
    """Return a table of pairs that all have one candidate in common, seen from that candidate."""
    if not pairs:
        return []
    heads = [
        "",
        "| pair | wins | ties | losses | difference | 95 % interval | p (Holm) |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    return heads + [
        f"| {_plain(pair.a)} : {_plain(pair.b)} | {pair.wins} | {pair.ties} | {pair.losses} | "
        f"{signed_points(pair.difference)} | {interval(pair.interval, signed_points)} | "
        f"{p_value(pair.p_adjusted)} |"
        for pair in (pair if pair.a == first else pair.reversed() for pair in pairs)
    ]


def _loss_table(losses: Sequence[Loss]) -> list[str]:
    """Return a table of general questions with the answers of both models."""
    if not losses:
        return []
    return [
        "",
        f"Where {_plain(losses[0].tuned['candidate'])} lost most on general questions:",
        "",
        "| question | base | score | fine-tuned | score |",
        "|---|---|--:|---|--:|",
        *(
            f"| {_cell(message_text(loss.item['messages'][-1]))} "
            f"| {_cell(_answer_or_error(loss.other))} | {_score(loss.other)} "
            f"| {_cell(_answer_or_error(loss.tuned))} | {_score(loss.tuned)} |"
            for loss in losses
        ),
    ]


def _answer_or_error(answer: Document) -> str:
    return str(answer["text"] if answer.get("text") is not None else answer.get("error") or "")


def _score(answer: Document) -> str:
    return percent(answer["score"]) if answer.get("score") is not None else "failed"


def _cell(text: str) -> str:
    return _plain(shortened(" ".join(text.split()), MAX_CELL))


def _plain(text: Any) -> str:
    """Return the text as Markdown that shows it literally, on one line, and that mentions nobody."""
    line = html.escape(visible(" ".join(str(text).split())), quote=False)
    return _MARKUP.sub(r"\\\1", line).replace("@", "&#64;").replace("://", "&#58;//")

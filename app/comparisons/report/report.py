"""A comparison to look at: one self-contained HTML page, or Markdown for a comment on a pull request.

Both are made from what the API returns (`GET /v1/comparisons/{id}` and its items): any client can make them.
Models and files say in it whatever they like: none of that becomes markup, and no script may run.
"""

from __future__ import annotations

import datetime
import functools
import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from jinja2 import Environment, PackageLoader, StrictUndefined

from app.comparisons.questions import answer_text
from app.comparisons.report.figures import percent, points
from app.comparisons.results import ComparisonResults, Interval, PairResult, SliceResult, Verdict
from app.core.control_characters import visible

MAX_ITEMS = 500
"""Questions that the page shows with all answers."""
MAX_REGRESSIONS = 20
MAX_TABLED = 5
"""General questions in the Markdown."""
MAX_TEXT = 4000
"""Characters of one answer."""
MAX_CELL = 160
"""Characters of one answer in the Markdown."""
_TITLES = {
    "fine_tuning_wins": "Fine-tuning wins",
    "prompting_is_enough": "Prompting is enough",
    "no_difference_shown": "No difference shown",
    "fine_tuning_hurts": "Fine-tuning hurts",
    "not_enough_data": "Not enough data",
}
_MARKUP = re.compile(r"([\\`*_\[\]|~#])")

Document = Mapping[str, Any]


class _Regression(NamedTuple):
    """A question that the model without fine-tuning answered better."""

    item: Document
    tuned: Document
    other: Document
    """The best prompted candidate's answer or, to a general question, the base's."""
    lost: float


def render_html(comparison: Document, items: Sequence[Document]) -> str:
    """The page.

    Args:
        comparison: the comparison object as JSON; without results it shows how far it is.
        items: all its items, in the order of the API.
    """
    results = _results(comparison)
    asked = [item for item in items if item.get("file") in {None, comparison.get("file")}]
    return _template().render(
        comparison=comparison,
        results=results,
        title=_TITLES[results.verdict.code] if results else "Not finished",
        slices=_slices(results) if results else [],
        regressions=_regressions(asked, results.verdict)[:MAX_REGRESSIONS] if results else [],
        general_tuned=_general_tuned(results) if results else None,
        losses=_general_losses(comparison, items, results)[:MAX_REGRESSIONS] if results else [],
        items=asked[:MAX_ITEMS],
        left_out=max(0, len(asked) - MAX_ITEMS),
        finished=_date(comparison.get("finished_at")),
    )


def render_markdown(comparison: Document, items: Sequence[Document] = ()) -> str:
    """Verdict, scores and what the fine-tuned model is held against, for a pull request.

    Args:
        comparison: as for the page.
        items: where general questions were asked, those that were lost are among them.
    """
    results = _results(comparison)
    if results is None:
        return f"### Comparison {_plain(comparison['id'])} is {_plain(comparison['status'])}\n"
    verdict = results.verdict
    lines = [f"### {_TITLES[verdict.code]}", "", _plain(verdict.sentence), "", *_score_table(results)]
    lines += _pair_table([pair for pair in results.pairs if verdict.tuned in {pair.a, pair.b}], verdict.tuned)
    for found in results.regression:
        lines += [
            "",
            f"General questions: {_plain(found.candidate)} {percent(found.score)}, its base "
            f"{percent(found.base_score)}, a difference of {_points(-found.loss)} points "
            f"(95 % interval {_points(-found.interval.high)} to {_points(-found.interval.low)}).",
        ]
    lines += _loss_table(_general_losses(comparison, items, results)[:MAX_TABLED])
    for curve in results.checkpoints:
        lines += ["", f"Checkpoints of {_plain(curve.job)}: {_plain(curve.sentence)}"]
    said = f"{verdict.questions:,} held-out questions"
    if excluded := int((comparison.get("excluded") or {"count": 0})["count"]):
        said += f"; {excluded:,} more were left out, since training files have them, too"
    lines += ["", f"{said}. Comparison {_plain(comparison['id'])}, base model {_plain(comparison['model'])}."]
    return "\n".join(lines) + "\n"


def _results(comparison: Document) -> ComparisonResults | None:
    return ComparisonResults.model_validate(comparison["results"]) if comparison.get("results") else None


def _score_table(results: ComparisonResults) -> list[str]:
    lines = [
        "| candidate | score | 95 % interval | failures | tokens per 1,000 questions | p50 | p95 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for found in results.candidates:
        name = _plain(found.name)
        cells = [
            f"**{name}**" if found.name == results.verdict.tuned else name,
            percent(found.score),
            _interval(found.interval),
            str(found.failures),
            f"{found.tokens.per_1000_questions:,}",
            _seconds(found.latency.p50) if found.latency else "",
            _seconds(found.latency.p95) if found.latency else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pair_table(pairs: Sequence[PairResult], first: str | None) -> list[str]:
    """Pairs of which one candidate is a side, seen from it."""
    if not pairs:
        return []
    heads = [
        "",
        "| pair | wins | ties | losses | difference | 95 % interval | p (Holm) |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    return heads + [
        f"| {_plain(pair.a)} : {_plain(pair.b)} | {pair.wins} | {pair.ties} | {pair.losses} | "
        f"{_points(pair.difference)} | {_interval(pair.interval, _points)} | {_p(pair.p_adjusted)} |"
        for pair in (pair if pair.a == first else _turned(pair) for pair in pairs)
    ]


def _loss_table(losses: Sequence[_Regression]) -> list[str]:
    """The general questions that were lost, each with both answers."""
    if not losses:
        return []
    return [
        "",
        f"Where {_plain(losses[0].tuned['candidate'])} lost most on general questions:",
        "",
        "| question | base | score | fine-tuned | score |",
        "|---|---|--:|---|--:|",
        *(
            f"| {_cell(_turn(loss.item['messages'][-1]))} "
            f"| {_cell(_said(loss.other))} | {_score(loss.other)} "
            f"| {_cell(_said(loss.tuned))} | {_score(loss.tuned)} |"
            for loss in losses
        ),
    ]


def _regressions(items: Sequence[Document], verdict: Verdict) -> list[_Regression]:
    """Where fine-tuning lost most against the best prompted candidate, the worst first."""
    found: list[_Regression] = []
    for item in items:
        answers = {answer["candidate"]: answer for answer in item["answers"]}
        found += _lost(item, answers.get(verdict.tuned), answers.get(verdict.prompted))
    return sorted(found, key=lambda regression: -regression.lost)


def _general_tuned(results: ComparisonResults) -> str | None:
    """Whose answers to general questions are shown: the verdict's model, if it was asked them."""
    tuned = [found.candidate for found in results.regression]
    return results.verdict.tuned if results.verdict.tuned in tuned else next(iter(tuned), None)


def _general_losses(
    comparison: Document, items: Sequence[Document], results: ComparisonResults
) -> list[_Regression]:
    """Where the fine-tuned model lost most against its base, the worst first."""
    tuned, shown = {found.candidate for found in results.regression}, _general_tuned(results)
    found: list[_Regression] = []
    for item in items:
        if item.get("file") != comparison.get("regression_file"):
            continue
        answers = {answer["candidate"]: answer for answer in item["answers"]}
        base = next((answer for name, answer in answers.items() if name not in tuned), None)
        found += _lost(item, answers.get(shown), base)
    return sorted(found, key=lambda regression: -regression.lost)


def _lost(item: Document, tuned: Document | None, other: Document | None) -> list[_Regression]:
    """The question, if the fine-tuned model's answer to it is the worse one."""
    if tuned is None or other is None:
        return []
    lost = (other.get("score") or 0) - (tuned.get("score") or 0)
    return [_Regression(item, tuned, other, lost)] if lost > 0 else []


def _slices(results: ComparisonResults) -> list[tuple[str, int, list[SliceResult]]]:
    """A row for each key and value: what it is, how many questions, each candidate's result."""
    rows: dict[tuple[str, str], list[SliceResult]] = {}
    for candidate in results.candidates:
        for part in candidate.slices:
            rows.setdefault((part.key, part.value), []).append(part)
    return [(f"{key}: {value}", parts[0].questions, parts) for (key, value), parts in rows.items()]


def _turned(pair: PairResult) -> PairResult:
    """The same pair, seen from the other side."""
    turned = {
        "a": pair.b,
        "b": pair.a,
        "wins": pair.losses,
        "losses": pair.wins,
        "difference": -pair.difference,
        "interval": Interval(low=-pair.interval.high, high=-pair.interval.low),
    }
    return pair.model_copy(update=turned)


@functools.cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("app.comparisons.report", "."),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast("dict[str, Any]", environment.filters)
    filters |= {
        "percent": percent,
        "allowed": points,
        "points": _points,
        "interval": _interval,
        "points_interval": functools.partial(_interval, form=_points),
        "seconds": _seconds,
        "p": _p,
        "short": _short,
        "turn": _turn,
    }
    return environment.get_template("report.html.jinja")


def _shown(value: Any) -> Any:
    """What takes the place of an expression."""
    return visible(value) if isinstance(value, str) else value


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0:+.1f}".replace("-", "\u2212")  # + 0: no -0.0


def _interval(interval: Interval, form: Callable[[float], str] = percent) -> str:
    return f"{form(interval.low)} to {form(interval.high)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _date(moment: int | None) -> str:
    if moment is None:
        return ""
    return f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _short(text: str | None, length: int = MAX_TEXT) -> str:
    text = text or ""
    return text if len(text) <= length else f"{text[:length]}…"


def _turn(message: Document) -> str:
    """A turn's text, or its calls."""
    return answer_text(message.get("content"), message.get("tool_calls"))


def _said(answer: Document) -> str:
    """An answer's text or, without one, why."""
    return str(answer["text"] if answer.get("text") is not None else answer.get("error") or "")


def _score(answer: Document) -> str:
    return percent(answer["score"]) if answer.get("score") is not None else "failed"


def _cell(text: str) -> str:
    return _plain(_short(" ".join(text.split()), MAX_CELL))


def _plain(text: Any) -> str:
    """A text that Markdown shows as it is, on one line, and that mentions nobody."""
    line = html.escape(visible(" ".join(str(text).split())), quote=False)
    return _MARKUP.sub(r"\\\1", line).replace("@", "&#64;").replace("://", "&#58;//")

"""A comparison as one self-contained HTML page.

It is made from what the API returns (`GET /v1/comparisons/{id}` and its items), so any client can make it.
Whatever models and files say becomes no markup in it, and no script may run.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined

from app.comparisons.report import figures
from app.comparisons.report.documents import (
    TITLES,
    candidate_labels,
    given_text,
    message_text,
    read_results,
    reference_text,
    shortened,
    slice_rows,
)
from app.comparisons.report.losses import (
    Document,
    general_losses,
    held_out_losses,
    shown_general_candidate,
)
from app.core.control_characters import visible

MAX_ITEMS = 500
"""The number of questions that the page shows with all answers."""
MAX_LOSSES = 20
"""The number of lost questions that the page shows, of the held-out and of the general ones."""
MAX_TEXT = 4000
"""The number of characters of one answer that the page shows."""


def render_html(comparison: Document, items: Sequence[Document]) -> str:
    """Return the page.

    Args:
        comparison: the comparison object; without results, the page tells how far it is.
        items: all the comparison's items, in the order of the API.
    """
    results = read_results(comparison)
    asked = [item for item in items if item.get("file") in {None, comparison.get("file")}]
    return _template().render(
        comparison=comparison,
        results=results,
        title=TITLES[results.verdict.code] if results else "Not finished",
        labels=candidate_labels(results) if results else {},
        slices=slice_rows(results) if results else [],
        regressions=held_out_losses(asked, results.verdict)[:MAX_LOSSES] if results else [],
        general_tuned=shown_general_candidate(results) if results else None,
        losses=general_losses(comparison, items, results)[:MAX_LOSSES] if results else [],
        items=asked[:MAX_ITEMS],
        left_out=max(0, len(asked) - MAX_ITEMS),
        finished=_date(comparison.get("finished_at")),
    )


@functools.cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("app.comparisons.report", "."),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast("dict[str, Any]", environment.filters)
    filters |= {
        "percent": figures.percent,
        "allowed": figures.points,
        "points": figures.signed_points,
        "interval": figures.interval,
        "points_interval": functools.partial(figures.interval, form=figures.signed_points),
        "seconds": figures.seconds,
        "p": figures.p_value,
        "short": _short,
        "turn": message_text,
        "reference": reference_text,
        "given": given_text,
    }
    return environment.get_template("page.html.jinja")


def _finalize(value: Any) -> Any:
    """Make control characters visible in every expression of the template."""
    return visible(value) if isinstance(value, str) else value


def _short(text: str | None, length: int = MAX_TEXT) -> str:
    return shortened(text, length)


def _date(moment: int | None) -> str:
    if moment is None:
        return ""
    return f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d %H:%M} UTC"

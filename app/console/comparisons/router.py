"""Comparisons: what there are, how one stands, and what it has found."""

from __future__ import annotations

import json
import time
from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.auth.roles import Action
from app.comparisons import service
from app.comparisons.models import FINAL_STATUSES, Comparison
from app.comparisons.plan import Plan
from app.comparisons.report import figures
from app.comparisons.report.documents import TITLES, slice_rows
from app.comparisons.results import ComparisonResults
from app.comparisons.schemas import ComparisonObject
from app.console.comparisons import creation, reading
from app.console.comparisons.reading import Shown
from app.console.comparisons.topics import watch_comparisons
from app.console.page import Page, PageDep
from app.dependencies import ReadSession, WriteSession

_PAGE = 20

Name = Annotated[str, Query(max_length=255)]

router = APIRouter(include_in_schema=False)
router.include_router(creation.router)  # before the routes that take any id
watch_comparisons()


@router.get("/console/comparisons")
def list_comparisons(page: PageDep, session: ReadSession, after: str | None = None) -> Response:
    """Show the project's comparisons, newest first."""
    found, has_more = service.list_comparisons(session, page.context.project_id, after=after, limit=_PAGE)
    return page.render(
        "comparisons/list.html.jinja",
        comparisons=[ComparisonObject.of(each) for each in found],
        titles=TITLES,
        after=after,
        next_after=found[-1].id if has_more else None,
        watch=["comparisons"],
    )


@router.get("/console/comparisons/{comparison_id}")
def read_comparison(
    page: PageDep,
    session: ReadSession,
    comparison_id: str,
    one: Name = "",
    other: Name = "",
    show: Name = "all",
    after: str | None = None,
) -> Response:
    """Show what a comparison has found or, until then, how far it is; and its answers."""
    comparison = service.get_comparison(session, page.context.project_id, comparison_id)
    plan = Plan.model_validate(comparison.plan)
    shown = ComparisonObject.of(comparison)
    results = shown.results
    chosen = reading.choose(plan, results, one, other, show)
    chosen = Shown(chosen.one, chosen.other, chosen.show, after)
    return page.render(
        "comparisons/page.html.jinja",
        comparison=shown,
        results=results,
        heading=shown.name or shown.id,
        figures=figures,
        grader=shown.grader if isinstance(shown.grader, str) else json.dumps(shown.grader, indent=2),
        verdict_title=TITLES[results.verdict.code] if results else None,
        labels=reading.labels_of(shown),
        ranked=sorted(results.candidates, key=lambda each: -each.score) if results else [],
        slices=slice_rows(results) if results else [],
        promoted=_promoted(page, results),
        systems={each.name: each.system for each in plan.candidates if each.system},
        answers=reading.read_answers(session, comparison, plan, results, chosen),
        is_final=comparison.status in FINAL_STATUSES,
        seconds_left=_seconds_left(comparison),
        watch=[] if comparison.status in FINAL_STATUSES else [f"comparison:{comparison.id}"],
    )


@router.get("/console/comparisons/{comparison_id}/progress")
def read_progress(page: PageDep, session: ReadSession, comparison_id: str) -> Response:
    """Show how far a comparison is; once it has ended, the page is loaded again as a whole."""
    comparison = service.get_comparison(session, page.context.project_id, comparison_id)
    if comparison.status in FINAL_STATUSES:
        return Response(headers={"hx-refresh": "true"})
    return page.render(
        "comparisons/_progress.html.jinja",
        comparison=ComparisonObject.of(comparison),
        seconds_left=_seconds_left(comparison),
    )


@router.post("/console/comparisons/{comparison_id}/cancel")
def cancel_comparison(page: PageDep, session: WriteSession, comparison_id: str) -> Response:
    """End a comparison; the answers so far stay."""
    service.cancel_comparison(session, page.context.project_id, comparison_id)
    return page.redirect(f"/console/comparisons/{comparison_id}")


def _promoted(page: Page, results: ComparisonResults | None) -> str | None:
    """Return the model that an alias may be moved to on the strength of the verdict, if the caller may."""
    if results is None or results.verdict.code != "fine_tuning_wins" or not page.may(Action.MANAGE):
        return None
    return next((each.model for each in results.candidates if each.name == results.verdict.tuned), None)


def _seconds_left(comparison: Comparison) -> float | None:
    """Return about how long it will still take, by what it has taken so far."""
    if comparison.status != "running" or comparison.started_at is None or not comparison.done:
        return None
    passed = max(time.time() - comparison.started_at, 0.0)
    return passed / comparison.done * (comparison.total - comparison.done)

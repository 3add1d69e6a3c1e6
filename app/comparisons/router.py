"""`/v1/comparisons`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from app.comparisons import service
from app.comparisons.input_files import MAX_QUESTIONS
from app.comparisons.plan import Plan
from app.comparisons.report.html_page import render_html
from app.comparisons.schemas import ComparisonObject, CreateComparison, ItemObject
from app.comparisons.validation import validate_in_child
from app.core.errors import ERROR_RESPONSES
from app.core.pagination import Page
from app.dependencies import (
    ContextDep,
    DatabaseDep,
    IdempotentRequestDep,
    LongRoute,
    ReadSession,
    WriteSession,
)

router = APIRouter(prefix="/v1/comparisons", tags=["Comparisons"], responses=ERROR_RESPONSES)


@router.post("", dependencies=[LongRoute])
def create_comparison(
    body: CreateComparison,
    context: ContextDep,
    creating: IdempotentRequestDep,
    database: DatabaseDep,
    http: Request,
) -> ComparisonObject:
    """Checks the request and its files, and queues a comparison. A retry queues no second one."""
    validate = partial(validate_in_child, http.is_disconnected)
    return ComparisonObject.of(service.create_comparison(database, context, creating, body, validate))


@router.get("")
def list_comparisons(
    context: ContextDep,
    session: ReadSession,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[ComparisonObject]:
    """The project's comparisons, newest first."""
    comparisons, has_more = service.list_comparisons(session, context.project_id, after=after, limit=limit)
    return Page[ComparisonObject].of([ComparisonObject.of(each) for each in comparisons], has_more)


@router.get("/{comparison_id}")
def retrieve_comparison(comparison_id: str, context: ContextDep, session: ReadSession) -> ComparisonObject:
    """One comparison, with its results once it has succeeded."""
    return ComparisonObject.of(service.get_comparison(session, context.project_id, comparison_id))


@router.post("/{comparison_id}/cancel")
def cancel_comparison(comparison_id: str, context: ContextDep, session: WriteSession) -> ComparisonObject:
    """Ends a comparison; the answers so far can still be read."""
    return ComparisonObject.of(service.cancel_comparison(session, context.project_id, comparison_id))


@router.get("/{comparison_id}/items")
def list_items(
    comparison_id: str,
    context: ContextDep,
    session: ReadSession,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[ItemObject]:
    """The questions in the order of their file, each with every answer so far."""
    comparison = service.get_comparison(session, context.project_id, comparison_id)
    items, has_more = service.list_items(session, comparison, after=after, limit=limit)
    plan = Plan.model_validate(comparison.plan)
    data = [ItemObject.of(comparison, plan, question, answers) for question, answers in items]
    return Page[ItemObject].of(data, has_more)


@router.get(
    "/{comparison_id}/report",
    response_class=Response,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def get_report(comparison_id: str, context: ContextDep, session: ReadSession) -> Response:
    """A self-contained HTML page with all results; before there are results, the progress."""
    comparison = service.get_comparison(session, context.project_id, comparison_id)
    items, _ = service.list_items(session, comparison, after=None, limit=MAX_QUESTIONS)
    plan = Plan.model_validate(comparison.plan)
    shown = [ItemObject.of(comparison, plan, *item).model_dump(mode="json") for item in items]
    page = render_html(ComparisonObject.of(comparison).model_dump(mode="json"), shown)
    return HTMLResponse(
        page, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    )

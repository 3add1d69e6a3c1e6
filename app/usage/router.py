"""`/v1/usage`: what a project has used."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.core.errors import ERROR_RESPONSES
from app.dependencies import ContextDep, ReadSession
from app.usage import service
from app.usage.schemas import UsagePage, UsageQuery

router = APIRouter(prefix="/v1", tags=["Usage"], responses=ERROR_RESPONSES)


@router.get("/usage")
def get_usage(session: ReadSession, context: ContextDep, query: Annotated[UsageQuery, Query()]) -> UsagePage:
    """The project's own usage of completions, in buckets of a minute, an hour or a day (UTC).

    `aliases` with `group_by=model` shows what each model of a split was asked by that alias.

    It may be a few seconds behind. What is older than 90 days is kept by the day: narrower buckets show it
    at the day's beginning.
    """
    buckets, next_start = service.list_buckets(session, context.project_id, query)
    return UsagePage.of(context.project_id, buckets, next_start)

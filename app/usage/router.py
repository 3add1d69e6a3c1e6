"""`/v1/usage`: what a project has used."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from app.core.errors import ERROR_RESPONSES
from app.dependencies import ContextDep, ReadSession
from app.usage import service
from app.usage.schemas import BucketWidth, UsagePage

router = APIRouter(prefix="/v1", tags=["Usage"], responses=ERROR_RESPONSES)

_LAST_SECOND = 253_402_300_799
"""Of the year 9999."""
Moment = Annotated[int, Query(ge=0, le=_LAST_SECOND, description="Unix seconds")]
Group = Literal["model", "project_id"]


@router.get("/usage")
def get_usage(
    session: ReadSession,
    context: ContextDep,
    start_time: Moment,
    end_time: Moment | None = None,
    bucket_width: BucketWidth = "1d",
    group_by: Annotated[list[Group] | None, Query()] = None,
    group_by_in_brackets: Annotated[list[Group] | None, Query(alias="group_by[]")] = None,
    models: Annotated[list[str] | None, Query()] = None,
    models_in_brackets: Annotated[list[str] | None, Query(alias="models[]")] = None,
    aliases: Annotated[list[str] | None, Query(description="Only requests by these names")] = None,
    aliases_in_brackets: Annotated[list[str] | None, Query(alias="aliases[]")] = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
    page: Annotated[str | None, Query(pattern=r"^[0-9]{1,12}$", description="A `next_page`")] = None,
) -> UsagePage:
    """The project's own usage of completions, in buckets of a minute, an hour or a day (UTC).

    `aliases` with `group_by=model` shows what each model of a split was asked by that alias.

    It may be a few seconds behind. What is older than 90 days is kept by the day: narrower buckets show it
    at the day's beginning.
    """
    buckets, next_start = service.list_buckets(
        session,
        context.project_id,
        start=start_time if page is None else int(page),
        end=int(time.time()) + 1 if end_time is None else end_time,
        width=bucket_width,
        by_model="model" in [*(group_by or ()), *(group_by_in_brackets or ())],
        models=[*(models or ()), *(models_in_brackets or ())],
        aliases=[*(aliases or ()), *(aliases_in_brackets or ())],
        limit=limit,
    )
    return UsagePage.of(context.project_id, buckets, next_start)

"""`/v1/usage` and `/v1/organization/usage`: what a project has used, and all of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.core.errors import ERROR_RESPONSES
from app.dependencies import ContextDep, ReadSession, bearer
from app.usage import service
from app.usage.schemas import GroupBy, OrganizationUsageQuery, UsagePage, UsageQuery

router = APIRouter(prefix="/v1", tags=["Usage"], responses=ERROR_RESPONSES)


@router.get("/usage")
def get_usage(session: ReadSession, context: ContextDep, query: Annotated[UsageQuery, Query()]) -> UsagePage:
    """The project's own usage of completions, in buckets of a minute, an hour or a day (UTC).

    `aliases` with `group_by=model` shows what each model of a split was asked by that alias.

    It may be a few seconds behind. What is older than 90 days is kept by the day: narrower buckets show it
    at the day's beginning.
    """
    group_by: set[GroupBy] = {"project_id", *query.groups}
    project_ids = [context.project_id]
    return UsagePage.of(*service.list_buckets(session, query, project_ids=project_ids, group_by=group_by))


@router.get("/organization/usage/completions", dependencies=[Depends(bearer)])
def get_organization_usage(
    session: ReadSession, query: Annotated[OrganizationUsageQuery, Query()]
) -> UsagePage:
    """The usage of all projects, in the same buckets."""
    return UsagePage.of(
        *service.list_buckets(session, query, project_ids=query.only_projects, group_by=query.groups)
    )

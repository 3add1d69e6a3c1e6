"""The list of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.console.events import topic
from app.console.jobs.description import JobView
from app.console.page import PageDep
from app.context import Context
from app.dependencies import ReadSession
from app.fine_tuning import service
from app.fine_tuning.models import ALLOWED_MOVES, FineTuningJob

router = APIRouter(include_in_schema=False)

_PAGE = 25
_WATCHED = 100
"""A list is told of changes to the newest jobs."""


@router.get("/console/jobs")
def list_jobs(
    page: PageDep,
    session: ReadSession,
    status: str = "",
    q: Annotated[str, Query(max_length=255)] = "",
    after: str | None = None,
) -> Response:
    """Show the project's jobs, newest first."""
    jobs, has_more = service.list_jobs(
        session,
        page.context.project_id,
        metadata={},
        after=after or None,
        limit=_PAGE,
        statuses=[status] if status in ALLOWED_MOVES else (),
        text=q.replace("\0", "").strip(),
    )
    return page.render(
        "jobs/list.html.jinja",
        jobs=[JobView(job) for job in jobs],
        has_more=has_more,
        statuses=list(ALLOWED_MOVES),
        chosen_status=status,
        q=q,
        after=after,
        is_filtered=bool(q.strip() or status or after),
    )


def _fingerprint(session: Session, context: Context, _argument: str) -> str:
    newest = (
        select(FineTuningJob.id, FineTuningJob.status, FineTuningJob.recorded_step)
        .where(FineTuningJob.project_id == context.project_id)
        .order_by(FineTuningJob.created_at.desc(), FineTuningJob.id.desc())
        .limit(_WATCHED)
    )
    return repr([tuple(row) for row in session.execute(newest)])


topic("jobs", _fingerprint)

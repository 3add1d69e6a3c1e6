"""Several jobs in the same pictures, and what differs between them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.console.jobs.description import JobView
from app.console.jobs.differences import compare
from app.console.jobs.pictures import overlaid
from app.console.jobs.watching import CurvesDep
from app.console.page import PageDep
from app.core.errors import InvalidRequestError
from app.dependencies import DatabaseDep
from app.fine_tuning import service

router = APIRouter(include_in_schema=False)

_DASHES = ((), (8, 4), (2, 3), (10, 3, 2, 3), (5, 5), (14, 4))
"""Of each job's lines, which are told apart by them and by colour."""
_MOST = len(_DASHES)


@router.get("/console/jobs/compare")
def compare_jobs(
    page: PageDep, database: DatabaseDep, cache: CurvesDep, job: Annotated[list[str] | None, Query()] = None
) -> Response:
    """Show the jobs over each other."""
    from app.console.jobs.overlay_reading import (  # noqa: PLC0415 - numpy, which the start does without
        read_overlay,
    )

    names = list(dict.fromkeys(job or ()))
    if not 2 <= len(names) <= _MOST:
        raise InvalidRequestError(
            f"Choose two to {_MOST} jobs of the list to overlay; this address names {len(names)}.",
            code="invalid_value",
            param="job",
        )
    with database.reader() as session:
        jobs = [service.get_job(session, page.context.project_id, name) for name in names]
        for each in jobs:
            _ = each.training_file, each.validation_file  # which the session loads
    curves = [cache.read(database, each.id) for each in jobs]
    return page.render(
        "jobs/compare.html.jinja",
        views=[JobView(each) for each in jobs],
        pictures=overlaid({each.method for each in jobs}),
        reading=read_overlay(
            [(JobView(each).title, each, curve) for each, curve in zip(jobs, curves, strict=True)]
        ),
        compared=compare(jobs, curves),
        dashes=_DASHES,
    )

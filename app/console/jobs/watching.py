"""The page of a job, which follows it while it trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.auth.roles import Action
from app.console.events import topic
from app.console.jobs.curve_cache import CurveCache
from app.console.jobs.description import JobView
from app.console.jobs.fields import label_of
from app.console.jobs.pictures import pictures_for
from app.console.jobs.progress import seconds_worked
from app.console.page import PageDep
from app.context import Context
from app.dependencies import DatabaseDep, ReadSession, WriteSession
from app.fine_tuning import service
from app.fine_tuning.forecast import describe_job
from app.fine_tuning.models import Event, FineTuningJob
from app.models.adapters import service as adapters_service

router = APIRouter(include_in_schema=False)

_EVENTS = 20
_CHECKPOINTS = 200
"""As many as a job can have."""
_ACTIONS = {"cancel": service.cancel_job, "pause": service.pause_job, "resume": service.resume_job}


async def _curves(request: Request) -> CurveCache:
    return cast("CurveCache", request.app.state.curves)


CurvesDep = Annotated[CurveCache, Depends(_curves)]
Step = Annotated[int, Query(ge=0, le=2**31)]


@router.get("/console/jobs/{job_id}")
def show_job(page: PageDep, session: ReadSession, job_id: str, after: str | None = None) -> Response:
    """Show a job: how far it is, its pictures, checkpoints, settings and log."""
    project_id = page.context.project_id
    job = service.get_job(session, project_id, job_id)
    checkpoints, _ = service.list_checkpoints(session, project_id, job_id, after=None, limit=_CHECKPOINTS)
    events, has_older = service.list_events(
        session, project_id, job_id, after=after or None, limit=_EVENTS, only_messages=True
    )
    served = {each.name for each in adapters_service.list_job_adapters(session, project_id, job_id)}
    return page.render(
        "jobs/job.html.jinja",
        view=JobView(job),
        shown=describe_job(session, page.context.settings, job),
        seconds_worked=seconds_worked(session, job),
        pictures=pictures_for(job.method),
        checkpoints=checkpoints,
        served=served,
        events=events,
        has_older=has_older,
        after=after,
        label_of=label_of,
    )


@router.get("/console/jobs/{job_id}/curves")
def read_curves(
    page: PageDep,
    database: DatabaseDep,
    cache: CurvesDep,
    job_id: str,
    columns: Annotated[int, Query(ge=1, le=10_000)] = 800,
    first: Step = 0,
    last: Step | None = None,
) -> Response:
    """Return the points of a job's pictures between two steps, and what the pictures say."""
    # numpy, which the start does without
    from app.console.jobs.points import points  # noqa: PLC0415
    from app.console.jobs.readings import read_picture  # noqa: PLC0415

    with database.reader() as session:
        job = service.get_job(session, page.context.project_id, job_id)
        checkpoints, _ = service.list_checkpoints(
            session, page.context.project_id, job_id, after=None, limit=_CHECKPOINTS
        )
    curves = cache.read(database, job_id)
    readings: dict[str, Any] = {}
    for picture in pictures_for(job.method):
        reading = read_picture(picture.key, curves, checkpoints)
        better = reading.better and {
            "step": reading.better.step_number,
            "name": reading.better.fine_tuned_model_checkpoint,
        }
        readings[picture.key] = {"text": reading.text, "better": better}
    drawn = points(curves, columns, first, last)
    drawn |= {
        "readings": readings,
        "checkpoints": [
            {"step": each.step_number, "name": each.fine_tuned_model_checkpoint} for each in checkpoints
        ],
    }
    return Response(
        orjson.dumps(drawn, option=orjson.OPT_SERIALIZE_NUMPY),
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )


@router.get("/console/jobs/{job_id}/figures")
def show_figures(page: PageDep, database: DatabaseDep, cache: CurvesDep, job_id: str) -> Response:
    """Show the numbers behind the pictures."""
    from app.console.jobs.figures import figures_of  # noqa: PLC0415 - numpy, which the start does without

    with database.reader() as session:
        service.get_job(session, page.context.project_id, job_id)
    return page.render("jobs/_figures.html.jinja", figures=figures_of(cache.read(database, job_id)))


@router.post("/console/jobs/{job_id}/{action}")
def change_job(
    page: PageDep, session: WriteSession, job_id: str, action: Literal["cancel", "pause", "resume"]
) -> Response:
    """Cancel, pause or resume a job, and show it as it is then."""
    page.check(Action.TRAIN)
    job = _ACTIONS[action](session, page.context.project_id, job_id)
    return page.redirect(f"/console/jobs/{job.id}")


def _fingerprint(session: Session, context: Context, job_id: str) -> str:
    newest = select(func.max(Event.seq)).where(Event.job_id == job_id).scalar_subquery()
    row = select(FineTuningJob.status, FineTuningJob.recorded_step, newest).where(
        FineTuningJob.id == job_id, FineTuningJob.project_id == context.project_id
    )
    return repr(session.execute(row).one_or_none())


topic("job", _fingerprint)

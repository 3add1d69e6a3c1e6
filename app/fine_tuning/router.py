"""`/v1/fine_tuning/jobs`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app.dependencies import CurrentProject, ReadSession, SettingsDep, StorageDep, WriteSession
from app.errors import ERROR_RESPONSES
from app.fine_tuning import service
from app.fine_tuning.schemas import CheckpointObject, CreateJob, EventObject, JobObject
from app.pagination import Page

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"], responses=ERROR_RESPONSES)

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("")
def create_job(
    body: CreateJob,
    project: CurrentProject,
    session: WriteSession,
    storage: StorageDep,
    settings: SettingsDep,
) -> JobObject:
    """Checks the request and the files, and queues a job."""
    return JobObject.of(service.create_job(session, storage, settings, project.id, body))


@router.get("")
def list_jobs(
    request: Request,
    project: CurrentProject,
    session: ReadSession,
    after: str | None = None,
    limit: Limit = 20,
) -> Page[JobObject]:
    """The project's jobs, newest first; `metadata[key]=value` keeps those that carry it."""
    metadata = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    jobs, has_more = service.list_jobs(session, project.id, metadata=metadata, after=after, limit=limit)
    return Page[JobObject].of([JobObject.of(job) for job in jobs], has_more)


@router.get("/{job_id}")
def retrieve_job(job_id: str, project: CurrentProject, session: ReadSession) -> JobObject:
    """One job."""
    return JobObject.of(service.get_job(session, project.id, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, project: CurrentProject, session: WriteSession) -> JobObject:
    """Ends a job; its finished checkpoints stay servable."""
    return JobObject.of(service.cancel_job(session, project.id, job_id))


@router.get("/{job_id}/events")
def list_events(
    job_id: str, project: CurrentProject, session: ReadSession, after: str | None = None, limit: Limit = 20
) -> Page[EventObject]:
    """The job's log, newest first."""
    events, has_more = service.list_events(session, project.id, job_id, after=after, limit=limit)
    return Page[EventObject].of([EventObject.of(event) for event in events], has_more)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, project: CurrentProject, session: ReadSession, after: str | None = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    """The job's checkpoints, newest first."""
    checkpoints, has_more = service.list_checkpoints(session, project.id, job_id, after=after, limit=limit)
    return Page[CheckpointObject].of(
        [CheckpointObject.of(checkpoint) for checkpoint in checkpoints], has_more
    )

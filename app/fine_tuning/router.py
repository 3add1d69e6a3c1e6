"""`/v1/fine_tuning/jobs`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from app.core.errors import ERROR_RESPONSES, InvalidRequestError
from app.core.pagination import Page
from app.core.settings import Settings
from app.dependencies import (
    Creating,
    CurrentProject,
    ReadSession,
    SettingsDep,
    StorageDep,
    WriteSession,
)
from app.files.dependencies import CheckerDep
from app.fine_tuning import service
from app.fine_tuning.models import FineTuningJob
from app.fine_tuning.preflight import service as preflight
from app.fine_tuning.preflight.schemas import JobPreflight
from app.fine_tuning.schemas import CheckpointObject, CreateJob, EventObject, JobObject, Metadata

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"], responses=ERROR_RESPONSES)


Limit = Annotated[int, Query(ge=1, le=1000)]
_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


@router.post("")
async def create_job(
    body: CreateJob,
    creating: Creating,
    reading: ReadSession,
    session: WriteSession,
    storage: StorageDep,
    settings: SettingsDep,
    checker: CheckerDep,
) -> JobObject | JobPreflight:
    """Checks the request and the files, and queues a job; the same request sent again queues no other.

    With `dry_run` it only says what the job would do, and keeps nothing. Files that are still being checked
    are waited for, but not for long: the job is `validating_files` then.
    """
    await checker.settle(body.file_ids, settings.check_patience_seconds)
    if body.dry_run:
        return await run_in_threadpool(
            preflight.check_job, reading, storage, settings, creating.project_id, body
        )
    job = await run_in_threadpool(service.create_job, reading, session, storage, settings, creating, body)
    return await run_in_threadpool(_shown, session, settings, job)


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
    try:
        _METADATA.validate_python(metadata)
    except ValidationError as error:
        raise InvalidRequestError(
            "A job has at most 16 pairs of metadata, keys of up to 64 characters, values of up to 512.",
            code="invalid_value",
            param="metadata",
        ) from error
    jobs, has_more = service.list_jobs(session, project.id, metadata=metadata, after=after, limit=limit)
    return Page[JobObject].of([JobObject.of(job) for job in jobs], has_more)


@router.get("/{job_id}")
def retrieve_job(
    job_id: str, project: CurrentProject, session: ReadSession, settings: SettingsDep
) -> JobObject:
    """One job; while it waits, with its place in the queue and when it may start."""
    return _shown(session, settings, service.get_job(session, project.id, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(
    job_id: str, project: CurrentProject, session: WriteSession, settings: SettingsDep
) -> JobObject:
    """Ends a job; its finished checkpoints stay servable."""
    return _shown(session, settings, service.cancel_job(session, project.id, job_id))


@router.post("/{job_id}/pause")
def pause_job(
    job_id: str, project: CurrentProject, session: WriteSession, settings: SettingsDep
) -> JobObject:
    """Sets a job aside until it is resumed; its worker takes another."""
    return _shown(session, settings, service.pause_job(session, project.id, job_id))


@router.post("/{job_id}/resume")
def resume_job(
    job_id: str, project: CurrentProject, session: WriteSession, settings: SettingsDep
) -> JobObject:
    """Puts a paused job back into the queue; it goes on where it stopped."""
    return _shown(session, settings, service.resume_job(session, project.id, job_id))


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


def _shown(session: Session, settings: Settings, job: FineTuningJob) -> JobObject:
    """One job; while it waits, with its place in the queue and when it may start."""
    shown = JobObject.of(job)
    if job.status == "queued":
        shown.queue_position, shown.estimated_start = service.forecast(session, settings, job)
    return shown

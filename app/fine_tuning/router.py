"""`/v1/fine_tuning/jobs`."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from pydantic import TypeAdapter, ValidationError

from app.core.errors import ERROR_RESPONSES, InvalidRequestError
from app.core.pagination import Page
from app.dependencies import (
    ContextDep,
    DatabaseDep,
    IdempotentRequestDep,
    LongRoutesDep,
    ReadSession,
    WriteSession,
)
from app.files.dependencies import CheckerDep
from app.fine_tuning import creation, service
from app.fine_tuning.forecast import describe_job
from app.fine_tuning.preflight import service as preflight
from app.fine_tuning.preflight.schemas import JobPreflight
from app.fine_tuning.schemas import CheckpointObject, CreateJob, EventObject, JobObject, Metadata

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"], responses=ERROR_RESPONSES)

_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


async def _metadata_filter(request: Request) -> dict[str, str] | None:
    whole = request.query_params.get("metadata")
    if whole == "null":
        return None
    if whole is not None:
        raise InvalidRequestError(
            "Write 'metadata[key]=value', or 'metadata=null' for jobs without metadata.",
            code="invalid_value",
            param="metadata",
        )
    given = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    try:
        return _METADATA.validate_python(given)
    except ValidationError as error:
        raise InvalidRequestError(
            "A job has at most 16 pairs of metadata, keys of up to 64 characters, values of up to 512.",
            code="invalid_value",
            param="metadata",
        ) from error


Limit = Annotated[int, Query(ge=1, le=1000)]
MetadataFilter = Annotated[dict[str, str] | None, Depends(_metadata_filter)]
"""The pairs of `metadata[key]=value` in the query, or None for `metadata=null`."""


@router.post("")
async def create_job(
    body: CreateJob,
    context: ContextDep,
    creating: IdempotentRequestDep,
    database: DatabaseDep,
    checker: CheckerDep,
    long_routes: LongRoutesDep,
) -> JobObject | JobPreflight:
    """Checks the request and the files, and queues a job; the same request sent again queues no other.

    With `dry_run` it only says what the job would do, and keeps nothing. Files that are still being checked
    are waited for, but not for long: the job is `validating_files` then.
    """
    await checker.settle(body.file_ids, context.settings.check_patience_seconds)
    if body.dry_run:
        return await to_thread.run_sync(preflight.check_job, database, context, body, limiter=long_routes)
    create = creation.create_job
    return await to_thread.run_sync(create, database, context, creating, body, limiter=long_routes)


@router.get("")
def list_jobs(
    context: ContextDep,
    session: ReadSession,
    metadata: MetadataFilter,
    after: str | None = None,
    limit: Limit = 20,
) -> Page[JobObject]:
    """The project's jobs, newest first: with `metadata[key]=value` those that have the pair, with
    `metadata=null` those without metadata."""
    jobs, has_more = service.list_jobs(
        session, context.project_id, metadata=metadata, after=after, limit=limit
    )
    return Page[JobObject].of([JobObject.of(job) for job in jobs], has_more)


@router.get("/{job_id}")
def retrieve_job(job_id: str, context: ContextDep, session: ReadSession) -> JobObject:
    """One job; while it waits, with its place in the queue and when it may start."""
    job = service.get_job(session, context.project_id, job_id)
    return describe_job(session, context.settings, job)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, context: ContextDep, session: WriteSession) -> JobObject:
    """Ends a job; its finished checkpoints stay servable."""
    job = service.cancel_job(session, context.project_id, job_id)
    return describe_job(session, context.settings, job)


@router.post("/{job_id}/pause")
def pause_job(job_id: str, context: ContextDep, session: WriteSession) -> JobObject:
    """Sets a job aside until it is resumed; its worker takes another."""
    job = service.pause_job(session, context.project_id, job_id)
    return describe_job(session, context.settings, job)


@router.post("/{job_id}/resume")
def resume_job(job_id: str, context: ContextDep, session: WriteSession) -> JobObject:
    """Puts a paused job back into the queue; it goes on where it stopped."""
    job = service.resume_job(session, context.project_id, job_id)
    return describe_job(session, context.settings, job)


@router.get("/{job_id}/events")
def list_events(
    job_id: str, context: ContextDep, session: ReadSession, after: str | None = None, limit: Limit = 20
) -> Page[EventObject]:
    """The job's log, newest first."""
    events, has_more = service.list_events(session, context.project_id, job_id, after=after, limit=limit)
    return Page[EventObject].of([EventObject.of(event) for event in events], has_more)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, context: ContextDep, session: ReadSession, after: str | None = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    """The job's checkpoints, newest first."""
    checkpoints, has_more = service.list_checkpoints(
        session, context.project_id, job_id, after=after, limit=limit
    )
    return Page[CheckpointObject].of(
        [CheckpointObject.of(checkpoint) for checkpoint in checkpoints], has_more
    )

"""`/v1/batches`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.batches import service
from app.batches.schemas import BatchObject, CreateBatch
from app.core.errors import ERROR_RESPONSES
from app.core.pagination import Page
from app.dependencies import ContextDep, IdempotentRequestDep, ReadSession, WriteSession

router = APIRouter(
    prefix="/v1/batches",
    tags=["Batches"],
    responses=ERROR_RESPONSES,
)


@router.post("", response_model_exclude_none=True)
def create_batch(
    body: CreateBatch, context: ContextDep, creating: IdempotentRequestDep, session: WriteSession
) -> BatchObject:
    """Queues a file of requests to be answered within 24 hours. A retry queues no second batch."""
    return BatchObject.of(service.create_batch(session, context, creating, body))


@router.get("", response_model_exclude_none=True)
def list_batches(
    context: ContextDep,
    session: ReadSession,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[BatchObject]:
    """The project's batches, newest first."""
    batches, has_more = service.list_batches(session, context.project_id, after=after, limit=limit)
    return Page[BatchObject].of([BatchObject.of(each) for each in batches], has_more)


@router.get("/{batch_id}", response_model_exclude_none=True)
def retrieve_batch(batch_id: str, context: ContextDep, session: ReadSession) -> BatchObject:
    """One batch; its files can be read once it has ended."""
    return BatchObject.of(service.get_batch(session, context.project_id, batch_id))


@router.post("/{batch_id}/cancel", response_model_exclude_none=True)
def cancel_batch(batch_id: str, context: ContextDep, session: WriteSession) -> BatchObject:
    """Ends a batch; the answers so far are in its output file once it is `cancelled`."""
    return BatchObject.of(service.cancel_batch(session, context.project_id, batch_id))

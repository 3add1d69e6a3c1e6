"""Batches: creating, listing, reading and cancelling them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.batches.input_file import MAX_BYTES, REQUESTS
from app.batches.models import Batch
from app.batches.schemas import CreateBatch
from app.context import Context
from app.core.errors import ConflictError, InvalidRequestError, NotFoundError
from app.core.idempotency import IdempotentRequest
from app.core.pagination import fetch_page
from app.files import service as files_service

_WINDOW_SECONDS = 24 * 3600.0


def create_batch(
    session: Session, context: Context, creating: IdempotentRequest, request: CreateBatch
) -> Batch:
    """Queue a batch, whose file is then validated in the background.

    Raises:
        InvalidRequestError: the endpoint is not answered in batches, or the file is not for batches.
        NotFoundError: the file does not exist.
    """
    if request.endpoint not in REQUESTS:
        raise InvalidRequestError(
            f"Batches are answered at one of {', '.join(REQUESTS)}.", code="invalid_value", param="endpoint"
        )
    return creating.once(
        session,
        "batch",
        request.model_dump(mode="json", exclude_unset=True),
        find=partial(get_batch, session, context.project_id),
        create=partial(_create, session, context, request),
    )


def _create(session: Session, context: Context, request: CreateBatch) -> Batch:
    file = files_service.get_file(session, context.project_id, request.input_file_id, param="input_file_id")
    if file.purpose != "batch":
        raise InvalidRequestError(
            f"The file '{file.id}' has the purpose '{file.purpose}': upload it with the purpose 'batch'.",
            code="invalid_file_purpose",
            param="input_file_id",
        )
    if file.bytes > MAX_BYTES:
        raise InvalidRequestError(
            f"The file has {file.bytes:,} bytes; one of a batch has at most {MAX_BYTES:,}: split it.",
            code="batch_too_large",
            param="input_file_id",
        )
    now = time.time()
    expiry = request.output_expires_after
    batch = Batch(
        project_id=context.project_id,
        endpoint=request.endpoint,
        input_file_id=file.id,
        output_seconds=expiry.seconds if expiry else None,
        batch_metadata=request.metadata,
        created_at=now,
        expires_at=now + _WINDOW_SECONDS,
    )
    session.add(batch)
    session.flush()
    return batch


def get_batch(session: Session, project_id: str, batch_id: str) -> Batch:
    """Return the project's batch.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    batch = session.scalar(select(Batch).where(Batch.id == batch_id, Batch.project_id == project_id))
    if batch is None:
        raise NotFoundError(f"No batch '{batch_id}'.", code="batch_not_found")
    return batch


def list_batches(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Batch], bool]:
    """Return a page of the project's batches, newest first, and whether more follow."""
    return fetch_page(
        session,
        select(Batch).where(Batch.project_id == project_id),
        (Batch.created_at, Batch.id),
        identity=Batch.id,
        after=after,
        limit=limit,
    )


def cancel_batch(session: Session, project_id: str, batch_id: str) -> Batch:
    """Take a batch from the process that works on it; the answers so far are published.

    Raises:
        ConflictError: it has ended, or its answers are being published.
    """
    batch = get_batch(session, project_id, batch_id)
    # Locked, so that the process that works on it either has moved on or finds it cancelled.
    session.refresh(batch, with_for_update=True)
    if batch.status in ("cancelling", "cancelled"):
        return batch
    if batch.status not in ("validating", "in_progress"):
        raise ConflictError(
            f"The batch is {batch.status}; it cannot be cancelled any more.",
            code=f"batch_{batch.status}",
        )
    batch.status = "cancelling"
    batch.cancelling_at = time.time()
    batch.lease_until = None
    return batch


def count_by_status(session: Session) -> dict[str, int]:
    """Return the number of batches of all projects in each status."""
    counts = session.execute(select(Batch.status, func.count()).group_by(Batch.status))
    return {status: count for status, count in counts}  # noqa: C416 - a Row is no pair

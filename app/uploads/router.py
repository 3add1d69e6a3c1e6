"""`/v1/uploads`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool

from app.core.errors import ERROR_RESPONSES
from app.core.multipart import UploadForm
from app.core.pagination import Order, Page
from app.core.threads import entered_in_thread
from app.dependencies import ContextDep, DatabaseDep, IdempotentRequestDep, ReadSession, WriteSession
from app.files.dependencies import CheckerDep
from app.uploads import parts, service
from app.uploads.schemas import (
    MAX_PART_BYTES,
    AnnouncedPart,
    AnnouncePart,
    CompleteUpload,
    CreateUpload,
    PartObject,
    UploadObject,
)

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"], responses=ERROR_RESPONSES)

_PART_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


def _open_upload(upload_id: str, context: ContextDep, database: DatabaseDep) -> str:
    with database.reader() as session:
        return service.get_open_upload(session, context.project_id, upload_id).id


OpenUpload = Annotated[str, Depends(_open_upload)]
"""The id of an upload that takes parts; a part of any other is refused before its bytes are read."""


@router.post("")
def create_upload(
    body: CreateUpload, context: ContextDep, creating: IdempotentRequestDep, session: WriteSession
) -> UploadObject:
    """Announces a file that comes in parts, within an hour."""
    return UploadObject.of(service.create_upload(session, context, creating, body))


@router.get("")
def list_uploads(
    context: ContextDep,
    session: ReadSession,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
) -> Page[UploadObject]:
    """The project's uploads, newest first, without the files that they became."""
    uploads, has_more = service.list_uploads(
        session, context.project_id, after=after, limit=limit, order=order
    )
    return Page[UploadObject].of([UploadObject.of(upload) for upload in uploads], has_more)


@router.get("/{upload_id}")
def retrieve_upload(upload_id: str, context: ContextDep, session: ReadSession) -> UploadObject:
    """One upload, with the parts that have arrived."""
    return UploadObject.of(*service.find_upload(session, context, upload_id))


@router.post("/{upload_id}/parts", openapi_extra=_PART_BODY)
async def add_part(
    upload_id: OpenUpload,
    request: Request,
    context: ContextDep,
    creating: IdempotentRequestDep,
    database: DatabaseDep,
) -> PartObject:
    """Takes a part, of 64 MiB at most; any number may come at once."""
    async with entered_in_thread(context.storage.incoming()) as incoming:
        form = UploadForm({"data": incoming}, MAX_PART_BYTES, limit_name="the limit of a part")
        await form.receive(request.headers.get("content-type", ""), request.stream())
        part = await run_in_threadpool(parts.add_part, database, context, creating, upload_id, incoming)
    return PartObject.of(part)


@router.post("/{upload_id}/parts/signed")
def announce_part(
    upload_id: str,
    body: AnnouncePart,
    context: ContextDep,
    creating: IdempotentRequestDep,
    session: WriteSession,
) -> AnnouncedPart:
    """Returns a URL to which the part can be put straight into the bucket; 404 if the storage has none."""
    return AnnouncedPart.at(*parts.announce_part(session, context, creating, upload_id, body))


@router.post("/{upload_id}/complete")
async def complete_upload(
    upload_id: str,
    body: CompleteUpload,
    context: ContextDep,
    creating: IdempotentRequestDep,
    database: DatabaseDep,
    checker: CheckerDep,
) -> UploadObject:
    """Puts the parts together in the given order, and makes a file of them; a dataset is checked at once."""
    upload, file = await run_in_threadpool(
        service.complete_upload, database, context, creating, upload_id, body
    )
    checker.wake()
    return UploadObject.of(upload, file)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, context: ContextDep, database: DatabaseDep) -> UploadObject:
    """Gives an upload up; its parts are removed."""
    return UploadObject.of(service.cancel_upload(database, context, upload_id))

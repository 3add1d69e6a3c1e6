"""`/v1/files`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, RedirectResponse, Response

from app.core.errors import ERROR_RESPONSES
from app.core.multipart import UploadForm
from app.core.pagination import Order, Page
from app.core.threads import entered_in_thread
from app.dependencies import ContextDep, DatabaseDep, IdempotentRequestDep, ReadSession, WriteSession
from app.files import service
from app.files.dependencies import CheckerDep
from app.files.download import Download
from app.files.schemas import FileDeleted, FileObject, FileValidation

router = APIRouter(prefix="/v1/files", tags=["Files"], responses=ERROR_RESPONSES)

_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {
                            "type": "string",
                            "enum": ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"],
                        },
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_UPLOAD_BODY)
async def upload_file(
    request: Request,
    context: ContextDep,
    creating: IdempotentRequestDep,
    database: DatabaseDep,
    checker: CheckerDep,
) -> FileObject:
    """Uploads a file; one with the purpose `fine-tune` is checked at once, in the background."""
    async with entered_in_thread(context.storage.incoming()) as incoming:
        form = UploadForm({"file": incoming}, context.settings.max_file_bytes)
        await form.receive(request.headers.get("content-type", ""), request.stream())
        file = await run_in_threadpool(
            service.create_file, database, context, creating, incoming, form.filenames["file"], form.fields
        )
    checker.wake()
    return FileObject.of(file)


@router.get("")
def list_files(
    context: ContextDep,
    session: ReadSession,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
) -> Page[FileObject]:
    """The project's files, newest first."""
    files, has_more = service.list_files(
        session, context.project_id, purpose=purpose, after=after, limit=limit, order=order
    )
    return Page[FileObject].of([FileObject.of(file) for file in files], has_more)


@router.get("/{file_id}")
def retrieve_file(file_id: str, context: ContextDep, session: ReadSession) -> FileObject:
    """One file."""
    return FileObject.of(service.get_file(session, context.project_id, file_id))


@router.delete("/{file_id}")
def delete_file(file_id: str, context: ContextDep, session: WriteSession) -> FileDeleted:
    """Deletes a file; jobs that were created with it go on."""
    return FileDeleted(id=service.delete_file(session, context.project_id, file_id).id)


@router.get("/{file_id}/validation")
async def file_validation(
    file_id: str,
    context: ContextDep,
    database: DatabaseDep,
    checker: CheckerDep,
    base_model: str | None = None,
) -> FileValidation:
    """The report of a training file's check.

    Its tokens are those of the first base model in the catalogue, or of `base_model`.
    """
    file, report = await service.validate_for(database, context, checker, file_id, base_model)
    return FileValidation.of(file, report)


@router.get(
    "/{file_id}/content",
    response_class=FileResponse,
    responses={302: {"description": "They are in the bucket, at a URL that is valid for five minutes"}},
)
def file_content(file_id: str, context: ContextDep, session: ReadSession) -> Response:
    """The file's bytes."""
    file = service.find_content(session, context, file_id)
    if url := service.content_url(context, file):
        return RedirectResponse(url, 302, headers={"cache-control": "no-store"})
    return Download(service.content(context.storage, file), file.filename, file.sha256)

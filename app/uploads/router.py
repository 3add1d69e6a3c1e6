"""`/v1/uploads`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Request
from fastapi.concurrency import run_in_threadpool

from app.core.errors import ERROR_RESPONSES
from app.core.multipart import UploadForm
from app.dependencies import (
    Creating,
    CurrentProject,
    DatabaseDep,
    ReadSession,
    SettingsDep,
    StorageDep,
    WriteSession,
)
from app.files.dependencies import CheckerDep
from app.uploads import service
from app.uploads.schemas import CompleteUpload, CreateUpload, PartObject, UploadObject

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


def _open_upload(upload_id: str, project: CurrentProject, database: DatabaseDep) -> str:
    """Refuses a part of an upload that is over before its bytes are read."""
    with database.reader() as session:
        return service.get_open_upload(session, project.id, upload_id).id


OpenUpload = Annotated[str, Depends(_open_upload)]


@router.post("")
def create_upload(
    body: CreateUpload, creating: Creating, session: WriteSession, settings: SettingsDep
) -> UploadObject:
    """Announces a file that comes in parts, within an hour."""
    return UploadObject.of(service.create_upload(session, settings, creating, body))


@router.get("/{upload_id}")
def retrieve_upload(upload_id: str, project: CurrentProject, session: ReadSession) -> UploadObject:
    """One upload, with the parts that have arrived."""
    return UploadObject.of(*service.find_upload(session, project.id, upload_id))


@router.post("/{upload_id}/parts", openapi_extra=_PART_BODY)
async def add_part(
    upload_id: OpenUpload,
    request: Request,
    creating: Creating,
    session: WriteSession,
    storage: StorageDep,
    settings: SettingsDep,
) -> PartObject:
    """Takes a part, of 64 MiB at most; any number may come at once."""
    with storage.incoming() as incoming:
        form = UploadForm({"data": incoming}, service.MAX_PART_BYTES, limit_name="the limit of a part")
        await form.receive(request.headers.get("content-type", ""), request.stream())
        part = await run_in_threadpool(
            service.add_part, session, storage, settings, creating, upload_id=upload_id, incoming=incoming
        )
    return PartObject.of(part)


@router.post("/{upload_id}/complete")
def complete_upload(
    upload_id: str,
    body: CompleteUpload,
    creating: Creating,
    database: DatabaseDep,
    storage: StorageDep,
    checker: CheckerDep,
    background: BackgroundTasks,
) -> UploadObject:
    """Puts the parts together in the given order, and makes a file of them; a dataset is checked at once."""
    completed = UploadObject.of(*service.complete_upload(database, storage, creating, upload_id, body))
    background.add_task(checker.wake)
    return completed


@router.post("/{upload_id}/cancel")
def cancel_upload(
    upload_id: str, project: CurrentProject, database: DatabaseDep, storage: StorageDep
) -> UploadObject:
    """Gives an upload up; its parts are removed."""
    return UploadObject.of(service.cancel_upload(database, storage, project.id, upload_id))

"""`/v1/models` and `/v1/adapters`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from app.core.errors import ERROR_RESPONSES
from app.core.multipart import UploadForm
from app.core.threads import entered_in_thread
from app.dependencies import ContextDep, DatabaseDep, IdempotentRequestDep, ReadSession
from app.models.adapters import files, importing, served_models, service
from app.models.adapters.schemas import ImportAdapter, ModelList, ModelObject
from app.models.adapters.validation import CONFIG, WEIGHTS

models_router = APIRouter(prefix="/v1/models", tags=["Models"], responses=ERROR_RESPONSES)
adapters_router = APIRouter(prefix="/v1/adapters", tags=["Adapters"], responses=ERROR_RESPONSES)

_IMPORT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [CONFIG, WEIGHTS, "base_model"],
                    "properties": {
                        CONFIG: {"type": "string", "format": "binary"},
                        WEIGHTS: {"type": "string", "format": "binary"},
                        "base_model": {"type": "string"},
                        "suffix": {"type": "string", "minLength": 1, "maxLength": 64},
                    },
                }
            }
        },
    }
}


@models_router.get("")
def list_models(context: ContextDep, session: ReadSession) -> ModelList:
    """Base models, then the project's fine-tuned models and checkpoints, newest first."""
    return served_models.list_models(session, context)


@models_router.get("/{model}")
def retrieve_model(model: str, context: ContextDep, session: ReadSession) -> ModelObject:
    """One model, and what it was trained from."""
    return served_models.retrieve_model(session, context, model)


@adapters_router.post("", openapi_extra=_IMPORT_BODY)
async def import_adapter(
    request: Request, context: ContextDep, creating: IdempotentRequestDep, database: DatabaseDep
) -> ModelObject:
    """Takes a LoRA adapter as PEFT saves it, and serves it; it is checked whole before it is kept."""
    async with entered_in_thread(context.storage.incoming_folder()) as incoming:
        received = {name: incoming.file(name) for name in (CONFIG, WEIGHTS)}
        form = UploadForm(received, context.settings.max_file_bytes)
        await form.receive(request.headers.get("content-type", ""), request.stream())
        adapter = await run_in_threadpool(
            importing.import_adapter, database, context, creating, incoming, _import_request(form.fields)
        )
    return ModelObject.of_adapter(adapter, [adapter.base_model, adapter.name])


@adapters_router.post("/{name}/check")
def check_adapter(name: str, context: ContextDep, database: DatabaseDep, session: ReadSession) -> ModelObject:
    """Reads all of the adapter again: lifts its quarantine if it can be served now, else sets it."""
    adapter = files.check_again(database, context, name)
    return ModelObject.of_adapter(adapter, service.lineage(session, adapter))


@adapters_router.get(
    "/{name}/download",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}}},
)
def download_adapter(name: str, context: ContextDep, session: ReadSession) -> StreamingResponse:
    """The adapter as a tar of `adapter_config.json` and `adapter_model.safetensors`, for PEFT."""
    archive = files.archive_adapter(session, context, name)
    filename = name.replace(":", "-") + ".tar"
    headers = {
        "content-length": str(archive.size),
        "content-disposition": f'attachment; filename="{filename}"',
    }
    return StreamingResponse(archive, media_type="application/x-tar", headers=headers)


def _import_request(fields: dict[str, str]) -> ImportAdapter:
    try:
        return ImportAdapter.model_validate(fields)
    except ValidationError as error:
        located = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(located, body=fields) from error

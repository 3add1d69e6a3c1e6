"""`/v1/chat/completions` and `/v1/completions`: the gateway to the engines."""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from app.completions import service
from app.completions.schemas import ChatCompletionRequest, CompletionRequest, SamplingParameters
from app.completions.vllm import VllmClient
from app.database import Database
from app.dependencies import CurrentProject, DatabaseDep, SettingsDep
from app.errors import ERROR_RESPONSES, InvalidRequestError
from app.settings import Settings

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's completion object, or with `stream` its chunks as server-sent events",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}

router = APIRouter(prefix="/v1", tags=["Completions"], responses=ERROR_RESPONSES)


@router.post("/chat/completions", response_class=Response, responses=_ANSWER)
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    project: CurrentProject,
    database: DatabaseDep,
    settings: SettingsDep,
) -> Response:
    """Answers a conversation with a base model, a fine-tuned model or a checkpoint."""
    return await _forward(request, database, settings, project.id, "/v1/chat/completions", body)


@router.post("/completions", response_class=Response, responses=_ANSWER)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    project: CurrentProject,
    database: DatabaseDep,
    settings: SettingsDep,
) -> Response:
    """Continues a bare prompt."""
    if body.echo and body.logprobs is not None:
        raise InvalidRequestError(
            "'echo' with 'logprobs' is not supported.", code="unsupported_parameter", param="echo"
        )
    return await _forward(request, database, settings, project.id, "/v1/completions", body)


async def _forward(
    request: Request,
    database: Database,
    settings: Settings,
    project_id: str,
    path: str,
    body: SamplingParameters,
) -> Response:
    def route() -> Any:
        # The session ends here, before the answer starts: a stream must not hold a connection.
        with database.reader() as session:
            return service.route_request(session, settings, project_id, body.model)

    served, engine = await run_in_threadpool(route)
    upstream_body = body.model_dump(exclude_unset=True, exclude_none=True, by_alias=True)
    upstream_body["model"] = served.name
    client = cast("VllmClient", request.app.state.vllm)
    return await client.forward(engine, path, upstream_body)

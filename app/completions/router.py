"""`/v1/chat/completions` and `/v1/completions`: the gateway to the engines."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from inspect import signature
from typing import Annotated, Any, cast, get_type_hints

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.auth.caller import Caller
from app.completions.gateway import Gateway
from app.completions.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    GatewayRequest,
    ResponseRequest,
    parse_request,
)
from app.core.errors import ERROR_RESPONSES, InvalidRequestError
from app.dependencies import bearer, caller_of

_EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
"""The schema of one event, as in OpenAI's own specification; `data` is JSON, or `[DONE]`."""
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's completion object, or with `stream` its chunks as server-sent events",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": _EVENT},
        },
        "headers": {
            "x-toque-model": {
                "description": "The model that answered, where `model` was an alias or another of its names",
                "schema": {"type": "string"},
            },
            "x-toque-replica": {"description": "The engine that answered", "schema": {"type": "string"}},
            "x-toque-queue-ms": {
                "description": "From the request's arrival until it was sent to that engine",
                "schema": {"type": "number"},
            },
        },
    }
}


_LARGE_BODY = 2**18
"""From this size on, a body is parsed in a thread, so that other requests get their turns meanwhile."""


class DirectRoute(APIRoute):
    """A route that parses the body by itself; FastAPI only describes it.

    FastAPI's own way takes longer than all the rest of the gateway. Dependencies do not run here, so a route
    that has any is refused: its endpoint takes `body`, `request` and `caller`.

    Raises:
        TypeError: the endpoint, its router or the app has a dependency or a parameter that would be ignored.
    """

    def __init__(
        self, path: str, endpoint: Callable[..., Coroutine[Any, Any, Response]], **options: Any
    ) -> None:
        super().__init__(path, endpoint, **options)
        ignored = [_name(each.call) for each in self.dependant.dependencies if each.call is not bearer]
        ignored += signature(endpoint).parameters.keys() - {"body", "request", "caller"}
        if ignored:
            raise TypeError(f"{path} is a direct route, which would ignore {', '.join(sorted(ignored))}")
        kind: type[GatewayRequest] = get_type_hints(endpoint)["body"]

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            caller = caller_of(scope)
            await _gateway(request).rate_limiter.check(caller)
            content = await _read_body(request)
            if len(content) < _LARGE_BODY:
                body = parse_request(kind, content)
            else:
                body = await to_thread.run_sync(parse_request, kind, content)
            response = await endpoint(body=body, request=request, caller=caller)
            await response(scope, receive, send)

        self.app = answer


router = APIRouter(prefix="/v1", tags=["Completions"], responses=ERROR_RESPONSES, route_class=DirectRoute)

CallerDep = Annotated[Caller, Depends(bearer)]
"""The caller, for an endpoint of a direct route."""


@router.post("/chat/completions", response_class=Response, responses=_ANSWER)
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, caller: CallerDep
) -> Response:
    """Answers a conversation with a base model, a fine-tuned model or a checkpoint."""
    return await _gateway(request).answer(request.scope, caller, body)


@router.post("/completions", response_class=Response, responses=_ANSWER)
async def create_completion(body: CompletionRequest, request: Request, caller: CallerDep) -> Response:
    """Continues bare prompts, or scores them."""
    return await _gateway(request).answer(request.scope, caller, body)


@router.post("/responses", response_class=Response, responses=_ANSWER)
async def create_response(body: ResponseRequest, request: Request, caller: CallerDep) -> Response:
    """Answers, continues a stored response, or calls functions: OpenAI's newer way to ask."""
    return await _gateway(request).answer(request.scope, caller, body)


def _name(dependency: object) -> str:
    return getattr(dependency, "__name__", repr(dependency))


def _gateway(request: Request) -> Gateway:
    return cast("Gateway", request.app.state.gateway)


async def _read_body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise InvalidRequestError("The body is incomplete.", code="invalid_json") from error

"""`/v1/responses/{response_id}`: stored responses. It is `app.completions` that generates and stores them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.core.errors import ERROR_RESPONSES, InvalidRequestError
from app.core.pagination import Order
from app.dependencies import ContextDep, ReadSession, WriteSession
from app.responses import service
from app.responses.schemas import InputItems, ResponseDeleted

router = APIRouter(prefix="/v1/responses", tags=["Responses"], responses=ERROR_RESPONSES)

_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's response object",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


@router.get("/{response_id}", responses=_RESPONSE, response_model=None)
def retrieve_response(
    response_id: str,
    context: ContextDep,
    session: ReadSession,
    stream: bool = False,
) -> dict[str, Any]:
    """One stored response."""
    if stream:
        raise InvalidRequestError(
            "A stored response cannot be streamed again; leave 'stream' out.",
            code="unsupported_parameter",
            param="stream",
        )
    return service.get_response(session, context.project_id, response_id).response


@router.delete("/{response_id}")
def delete_response(response_id: str, context: ContextDep, session: WriteSession) -> ResponseDeleted:
    """Deletes a stored response; those that continue it can then not be continued any further."""
    service.delete_response(session, context.project_id, response_id)
    return ResponseDeleted(id=response_id)


@router.post("/{response_id}/cancel", responses=_RESPONSE, response_model=None)
def cancel_response(response_id: str, context: ContextDep, session: ReadSession) -> dict[str, Any]:
    """Refuses: only background responses can be cancelled, and there are none."""
    service.get_response(session, context.project_id, response_id)
    raise InvalidRequestError(
        "Only responses that are generated in the background can be cancelled, and this service has none. To "
        "stop one that is being generated, close its connection.",
        code="unsupported_operation",
        param="response_id",
    )


@router.get("/{response_id}/input_items")
def list_input_items(
    response_id: str,
    context: ContextDep,
    session: ReadSession,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
) -> InputItems:
    """The items that a response was generated from, those of the responses that it continues included."""
    items, has_more = service.list_input_items(
        session, context.project_id, response_id, after=after, limit=limit, order=order
    )
    return InputItems.of(items, has_more)

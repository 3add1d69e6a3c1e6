"""`/v1/webhook_endpoints` as OpenAI has it, and `/v1/webhooks/deliveries`."""

from __future__ import annotations

from typing import Annotated, cast

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request

from app.core.errors import ERROR_RESPONSES
from app.core.pagination import Page
from app.dependencies import (
    ContextDep,
    DatabaseDep,
    IdempotentRequestDep,
    ReadSession,
    WriteSession,
)
from app.webhooks import service
from app.webhooks.client import WebhookClient
from app.webhooks.events import EVENT_TYPES, EventType
from app.webhooks.models import DeliveryStatus, WebhookEndpoint
from app.webhooks.schemas import (
    CreateWebhookEndpoint,
    DeliveryObject,
    EventTypeList,
    RotateSecret,
    SendSample,
    UpdateWebhookEndpoint,
    WebhookEndpointDeleted,
    WebhookEndpointObject,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
)

router = APIRouter(prefix="/v1", tags=["Webhooks"], responses=ERROR_RESPONSES)
Limit = Annotated[int, Query(ge=1, le=100)]


async def _client(request: Request) -> WebhookClient:
    return cast("WebhookClient", request.app.state.webhook_client)


@router.get("/webhook_event_types")
def list_event_types(_context: ContextDep) -> EventTypeList:
    """The types of events that endpoints can be told of."""
    return EventTypeList(data=list(EVENT_TYPES))


@router.post("/webhook_endpoints")
def create_endpoint(
    body: CreateWebhookEndpoint, context: ContextDep, creating: IdempotentRequestDep, session: WriteSession
) -> WebhookEndpointWithSecret:
    """Adds an endpoint, and shows its secret this once."""
    endpoint = service.create_endpoint(session, context.settings, context.project_id, creating, body)
    return WebhookEndpointWithSecret.of(endpoint)


@router.get("/webhook_endpoints")
def list_endpoints(
    context: ContextDep, session: ReadSession, after: str | None = None, limit: Limit = 20
) -> Page[WebhookEndpointObject]:
    """The project's webhook endpoints, newest first."""
    endpoints, has_more = service.list_endpoints(session, context.project_id, after=after, limit=limit)
    return Page[WebhookEndpointObject].of([WebhookEndpointObject.of(each) for each in endpoints], has_more)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
def retrieve_endpoint(
    webhook_endpoint_id: str, context: ContextDep, session: ReadSession
) -> WebhookEndpointObject:
    """One webhook endpoint."""
    return WebhookEndpointObject.of(service.get_endpoint(session, context.project_id, webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
def update_endpoint(
    webhook_endpoint_id: str, body: UpdateWebhookEndpoint, context: ContextDep, session: WriteSession
) -> WebhookEndpointObject:
    """Changes a webhook endpoint, or enables or disables it."""
    return WebhookEndpointObject.of(
        service.update_endpoint(session, context.settings, context.project_id, webhook_endpoint_id, body)
    )


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
def delete_endpoint(
    webhook_endpoint_id: str, context: ContextDep, session: WriteSession
) -> WebhookEndpointDeleted:
    """Deletes a webhook endpoint and its deliveries."""
    return WebhookEndpointDeleted(
        id=service.delete_endpoint(session, context.project_id, webhook_endpoint_id)
    )


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
def rotate_secret(
    webhook_endpoint_id: str,
    context: ContextDep,
    creating: IdempotentRequestDep,
    session: WriteSession,
    body: RotateSecret | None = None,
) -> WebhookEndpointWithSecret:
    """Gives an endpoint a new secret, and shows it this once."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    return WebhookEndpointWithSecret.of(
        service.rotate_secret(session, context.project_id, creating, webhook_endpoint_id, keep_old=keep_old)
    )


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
async def test_endpoint(
    webhook_endpoint_id: str,
    body: SendSample,
    context: ContextDep,
    database: DatabaseDep,
    client: Annotated[WebhookClient, Depends(_client)],
) -> WebhookEndpointTest:
    """Sends a sample event at once, and tells the status of the answer."""

    def find() -> WebhookEndpoint:
        with database.reader() as session:
            return service.get_endpoint(session, context.project_id, webhook_endpoint_id)

    endpoint = await to_thread.run_sync(find)
    return WebhookEndpointTest(
        webhook_endpoint_id=endpoint.id,
        event_type=body.event_type,
        status_code=await service.send_sample(client, endpoint, body.event_type),
    )


@router.get("/webhooks/deliveries")
def list_deliveries(
    context: ContextDep,
    session: ReadSession,
    webhook_endpoint_id: str | None = None,
    status: DeliveryStatus | None = None,
    event_type: EventType | None = None,
    after: str | None = None,
    limit: Limit = 20,
) -> Page[DeliveryObject]:
    """What was sent to the project's endpoints or waits to be sent, newest first; for 30 days."""
    deliveries, has_more = service.list_deliveries(
        session,
        context.project_id,
        endpoint_id=webhook_endpoint_id,
        status=status,
        event_type=event_type,
        after=after,
        limit=limit,
    )
    return Page[DeliveryObject].of([DeliveryObject.of(each) for each in deliveries], has_more)


@router.get("/webhooks/deliveries/{delivery_id}")
def retrieve_delivery(delivery_id: str, context: ContextDep, session: ReadSession) -> DeliveryObject:
    """One delivery, with what its last attempt came to."""
    return DeliveryObject.of(service.get_delivery(session, context.project_id, delivery_id))


@router.post("/webhooks/deliveries/{delivery_id}/replay")
def replay_delivery(
    delivery_id: str, context: ContextDep, creating: IdempotentRequestDep, session: WriteSession
) -> DeliveryObject:
    """Delivers an event once more, as a new delivery."""
    return DeliveryObject.of(service.replay_delivery(session, context.project_id, creating, delivery_id))

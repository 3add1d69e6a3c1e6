"""Webhook endpoints, events and deliveries on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.core.pagination import Identified
from app.webhooks.events import EventType
from app.webhooks.models import DeliveryStatus, WebhookDelivery, WebhookEndpoint

Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\u0000]*$")]
Url = Annotated[str, StringConstraints(max_length=2048, pattern=r"^https?://[!-~]+$")]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=64)]


class CreateWebhookEndpoint(BaseModel):
    """Where to send which events."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    url: Url
    event_types: EventTypes


class UpdateWebhookEndpoint(BaseModel):
    """What to change of a webhook endpoint; what is absent stays."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    enabled: Annotated[bool, Field(strict=True)] | None = None
    """Whether events are delivered. Deliveries that wait when it becomes false are given up."""


class RotateSecret(BaseModel):
    """How the old secret ends."""

    model_config = ConfigDict(extra="forbid")

    keep_old_secret_active_for_24_hours: Annotated[bool, Field(strict=True)] = False
    """Whether deliveries are signed with the old secret, too, for so long."""


class SendSample(BaseModel):
    """Which event to send a sample of."""

    model_config = ConfigDict(extra="forbid")

    event_type: EventType


class WebhookEndpointObject(Identified):
    """A webhook endpoint; its secret is shown when it is made, and never again."""

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    """The last characters of the secret, to tell secrets apart."""
    enabled: bool
    """False once it was disabled, or has answered with the status 410."""
    failures: int
    """The attempts in a row that have failed."""
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> WebhookEndpointObject:
        """Return the endpoint as the API shows it."""
        return cls(**_fields(endpoint))


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """A webhook endpoint whose secret is new."""

    signing_secret: str
    """What to verify signatures with."""

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> WebhookEndpointWithSecret:
        """Return the endpoint with its secret."""
        return cls(**_fields(endpoint), signing_secret=endpoint.secret)


class WebhookEndpointDeleted(BaseModel):
    """The confirmation that a webhook endpoint was deleted."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTest(BaseModel):
    """What a webhook endpoint has answered to a sample."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: EventType
    status_code: int
    success: Literal[True] = True
    """Whether there was an answer, whatever its status."""


class EventTypeList(BaseModel):
    """The types of events."""

    object: Literal["list"] = "list"
    data: list[str]


class EventObject(Identified):
    """An event as endpoints are sent it."""

    object: Literal["event"] = "event"
    created_at: int
    """When it happened."""
    type: str
    data: dict[str, Any]
    """The `id` of what it is about, and for some types more."""

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> EventObject:
        """Return the event that is delivered."""
        return cls(
            id=delivery.event_id,
            created_at=int(delivery.event_created_at),
            type=delivery.event_type,
            data=delivery.data,
        )


class DeliveryObject(Identified):
    """An event on its way to one endpoint."""

    object: Literal["webhook.delivery"] = "webhook.delivery"
    webhook_endpoint_id: str
    event: EventObject
    status: DeliveryStatus
    created_at: int
    ended_at: int | None
    attempts: int
    attempted_at: int | None
    """The time of the last attempt; what it came to follows."""
    status_code: int | None
    response_body: str | None
    """The beginning of the answer's body."""
    error: str | None
    """Why there was no answer, or why the delivery was given up without one."""

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> DeliveryObject:
        """Return the delivery as the API shows it."""
        return cls(
            id=delivery.id,
            webhook_endpoint_id=delivery.endpoint_id,
            event=EventObject.of(delivery),
            status=delivery.status,
            created_at=int(delivery.created_at),
            ended_at=None if delivery.ended_at is None else int(delivery.ended_at),
            attempts=delivery.attempts,
            attempted_at=None if delivery.attempted_at is None else int(delivery.attempted_at),
            status_code=delivery.status_code,
            response_body=delivery.response_body,
            error=delivery.error,
        )


def _fields(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "signing_secret_hint": f"…{endpoint.secret[-4:]}",
        "enabled": endpoint.enabled,
        "failures": endpoint.failures,
        "created_at": int(endpoint.created_at),
        "updated_at": int(endpoint.updated_at),
    }

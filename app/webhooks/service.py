"""Webhook endpoints and their deliveries: creating, changing, testing and replaying them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.database import advisory_lock, new_id
from app.core.errors import ConflictError, FailedDependencyError, InvalidRequestError, NotFoundError
from app.core.idempotency import IdempotentRequest
from app.core.pagination import fetch_page
from app.core.settings import Settings
from app.webhooks import queue
from app.webhooks.addresses import check_url
from app.webhooks.client import WebhookClient
from app.webhooks.events import EventType, sample_data
from app.webhooks.message import new_secret, signed_request
from app.webhooks.models import DeliveryStatus, WebhookDelivery, WebhookEndpoint
from app.webhooks.schemas import CreateWebhookEndpoint, EventObject, UpdateWebhookEndpoint

MAX_ENDPOINTS = 32
"""The most endpoints of a project: each event writes a row for every one that wants it."""
_OVERLAP_SECONDS = 24 * 3600.0


def create_endpoint(
    session: Session,
    settings: Settings,
    project_id: str,
    creating: IdempotentRequest,
    request: CreateWebhookEndpoint,
) -> WebhookEndpoint:
    """Add an endpoint, which is told of the events that happen from now on.

    Raises:
        InvalidRequestError: nothing can be delivered to its URL, or the project has too many endpoints.
    """
    check_url(request.url, settings.webhook_private_networks)
    return creating.once(
        session,
        "webhook_endpoint",
        request.model_dump(),
        find=partial(get_endpoint, session, project_id),
        create=partial(_create, session, project_id, request),
    )


def _create(session: Session, project_id: str, request: CreateWebhookEndpoint) -> WebhookEndpoint:
    advisory_lock(session, f"webhook endpoints of {project_id}")  # two at once would not count each other
    of_project = select(func.count()).where(WebhookEndpoint.project_id == project_id)
    if (session.scalar(of_project) or 0) >= MAX_ENDPOINTS:
        raise InvalidRequestError(
            f"A project has at most {MAX_ENDPOINTS} webhook endpoints: delete one that is not needed.",
            code="too_many_webhook_endpoints",
        )
    endpoint = WebhookEndpoint(
        project_id=project_id,
        name=request.name,
        url=request.url,
        event_types=sorted(set(request.event_types)),
        secret=new_secret(),
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def get_endpoint(session: Session, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    """Return the project's endpoint.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    return _find_endpoint(session, project_id, endpoint_id, is_locked=False)


def list_endpoints(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[WebhookEndpoint], bool]:
    """Return a page of the project's endpoints, newest first, and whether more follow."""
    return fetch_page(
        session,
        select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id),
        (WebhookEndpoint.created_at, WebhookEndpoint.id),
        identity=WebhookEndpoint.id,
        after=after,
        limit=limit,
    )


def update_endpoint(
    session: Session, settings: Settings, project_id: str, endpoint_id: str, request: UpdateWebhookEndpoint
) -> WebhookEndpoint:
    """Change an endpoint. What waits for it is tried at once, since whatever was wrong may be mended.

    Raises:
        NotFoundError: it does not exist.
        InvalidRequestError: nothing can be delivered to its URL.
    """
    endpoint = _find_endpoint(session, project_id, endpoint_id, is_locked=True)
    if request.url is not None:
        check_url(request.url, settings.webhook_private_networks)
    changes = request.model_dump(exclude_none=True)
    if request.event_types is not None:
        changes["event_types"] = sorted(set(request.event_types))
    changes = {name: value for name, value in changes.items() if getattr(endpoint, name) != value}
    for name, value in changes.items():
        setattr(endpoint, name, value)
    if changes:
        endpoint.updated_at = time.time()
        _try_at_once(endpoint)
    if changes.get("enabled") is False:
        _stop(session, endpoint, "The endpoint was disabled.")
    return endpoint


def disable_endpoints(session: Session, project_id: str, reason: str) -> None:
    """Disable all endpoints of a project, and give up what waits for them."""
    enabled = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.enabled)
    for endpoint in session.scalars(enabled.order_by(WebhookEndpoint.id).with_for_update()).all():
        endpoint.enabled, endpoint.updated_at = False, time.time()
        _stop(session, endpoint, reason)


def _stop(session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
    endpoint.lease_until = None  # taken from the process that delivers to it
    queue.give_up(session, endpoint.id, reason)


def delete_endpoint(session: Session, project_id: str, endpoint_id: str) -> str:
    """Delete an endpoint with all its deliveries, and return its id.

    Raises:
        NotFoundError: it does not exist.
    """
    endpoint = _find_endpoint(session, project_id, endpoint_id, is_locked=True)
    session.delete(endpoint)
    return endpoint_id


def rotate_secret(
    session: Session,
    project_id: str,
    creating: IdempotentRequest,
    endpoint_id: str,
    *,
    keep_old: bool,
) -> WebhookEndpoint:
    """Give an endpoint a new secret. A retry gives it no second one, as the client does not know the first.

    Raises:
        NotFoundError: it does not exist.
    """

    def rotate() -> WebhookEndpoint:
        endpoint = _find_endpoint(session, project_id, endpoint_id, is_locked=True)
        now = time.time()
        endpoint.previous_secret = endpoint.secret if keep_old else None
        endpoint.previous_secret_until = now + _OVERLAP_SECONDS if keep_old else None
        endpoint.secret, endpoint.updated_at = new_secret(), now
        return endpoint

    find = partial(get_endpoint, session, project_id)
    return creating.once(
        session, "webhook_endpoint.rotation", [endpoint_id, keep_old], find=find, create=rotate
    )


def current_secrets(endpoint: WebhookEndpoint) -> list[str]:
    """Return the secrets that deliveries are signed with: the new one, and the old one until it expires."""
    until = endpoint.previous_secret_until
    if endpoint.previous_secret is None or until is None or until <= time.time():
        return [endpoint.secret]
    return [endpoint.secret, endpoint.previous_secret]


async def send_sample(client: WebhookClient, endpoint: WebhookEndpoint, event_type: EventType) -> int:
    """Send a sample event to an endpoint, past all that waits for it, and return the status of the answer.

    Raises:
        FailedDependencyError: there was no answer.
    """
    sample = EventObject(
        id=new_id("evt_"), created_at=int(time.time()), type=event_type, data=sample_data(event_type)
    )
    answer = await client.post(endpoint.url, *signed_request(sample, current_secrets(endpoint)))
    if answer.status_code is None:
        raise FailedDependencyError(
            f"The endpoint did not answer. {answer.error}", code="webhook_endpoint_unreachable"
        )
    return answer.status_code


def list_deliveries(
    session: Session,
    project_id: str,
    *,
    endpoint_id: str | None,
    status: DeliveryStatus | None,
    event_type: EventType | None,
    after: str | None,
    limit: int,
) -> tuple[Sequence[WebhookDelivery], bool]:
    """Return a page of the project's deliveries, newest first, and whether more follow."""
    query = select(WebhookDelivery).where(WebhookDelivery.project_id == project_id)
    if endpoint_id is not None:
        query = query.where(WebhookDelivery.endpoint_id == endpoint_id)
    if status is not None:
        query = query.where(WebhookDelivery.status == status)
    if event_type is not None:
        query = query.where(WebhookDelivery.event_type == event_type)
    return fetch_page(
        session, query, (WebhookDelivery.seq,), identity=WebhookDelivery.id, after=after, limit=limit
    )


def get_delivery(session: Session, project_id: str, delivery_id: str) -> WebhookDelivery:
    """Return the project's delivery.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    this = select(WebhookDelivery).where(
        WebhookDelivery.id == delivery_id, WebhookDelivery.project_id == project_id
    )
    delivery = session.scalar(this)
    if delivery is None:
        raise NotFoundError(f"No webhook delivery '{delivery_id}'.", code="webhook_delivery_not_found")
    return delivery


def replay_delivery(
    session: Session, project_id: str, creating: IdempotentRequest, delivery_id: str
) -> WebhookDelivery:
    """Deliver an event once more, behind what waits for its endpoint, as a delivery of its own.

    Raises:
        NotFoundError: the delivery does not exist.
        ConflictError: it has not ended, or its endpoint is disabled.
    """

    def replay() -> WebhookDelivery:
        delivery = get_delivery(session, project_id, delivery_id)
        endpoint = _find_endpoint(session, project_id, delivery.endpoint_id, is_locked=True)
        if delivery.status == "pending":
            raise ConflictError("The delivery has not ended yet.", code="webhook_delivery_pending")
        if not endpoint.enabled:
            raise ConflictError(
                "The webhook endpoint is disabled; enable it first.", code="webhook_endpoint_disabled"
            )
        copied = ("project_id", "endpoint_id", "event_id", "event_type", "event_created_at", "data")
        again = WebhookDelivery(**{name: getattr(delivery, name) for name in copied})
        session.add(again)
        _try_at_once(endpoint)
        session.flush()
        return again

    find = partial(get_delivery, session, project_id)
    return creating.once(session, "webhook_delivery.replay", delivery_id, find=find, create=replay)


def _try_at_once(endpoint: WebhookEndpoint) -> None:
    endpoint.failures, endpoint.not_before = 0, 0.0


def _find_endpoint(
    session: Session, project_id: str, endpoint_id: str, *, is_locked: bool
) -> WebhookEndpoint:
    this = select(WebhookEndpoint).where(
        WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id
    )
    endpoint = session.scalar(this.with_for_update() if is_locked else this)
    if endpoint is None:
        raise NotFoundError(f"No webhook endpoint '{endpoint_id}'.", code="webhook_endpoint_not_found")
    return endpoint

"""The outbox: an event is written in the transaction that makes it happen, and delivered later.

If the transaction is rolled back, so is the event; once it is committed, the event is delivered even if every
process dies. https://microservices.io/patterns/data/transactional-outbox.html
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import ScalarSelect, insert, select
from sqlalchemy.orm import Session

from app.core.database import new_id
from app.webhooks.events import EventType
from app.webhooks.models import WebhookDelivery, WebhookEndpoint


def add_event(
    session: Session, project_id: str | ScalarSelect[str], event_type: EventType, data: dict[str, Any]
) -> None:
    """Write an event for every endpoint of the project that wants it, in the caller's transaction.

    The project is given by its id, or by a subquery that finds the id. Deliveries are numbered as they are
    written, so two events of one object stay in order if its row is locked when the first is written.
    """
    # Locked, so that an endpoint is not deleted before its delivery refers to it. The lock does not stand in
    # the way of a process that delivers to it.
    wanting = (
        select(WebhookEndpoint.id, WebhookEndpoint.project_id, WebhookEndpoint.event_types)
        .where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.enabled)
        .order_by(WebhookEndpoint.id)
        .with_for_update(read=True, key_share=True)
    )
    connection = session.connection()
    now = time.time()
    event = {
        "event_id": new_id("evt_"),
        "event_type": event_type,
        "event_created_at": now,
        "created_at": now,
        "data": data,
    }
    deliveries = [
        event | {"endpoint_id": endpoint.id, "project_id": endpoint.project_id}
        for endpoint in connection.execute(wanting)
        if event_type in endpoint.event_types
    ]
    if deliveries:
        connection.execute(insert(WebhookDelivery), deliveries)

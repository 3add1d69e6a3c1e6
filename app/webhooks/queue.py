"""The queue of deliveries: how an API process claims an endpoint, and records what it has sent there.

What is leased (`app.core.lease`) is the endpoint, while `lease_until` is set. So one process at a time
delivers to it, and its deliveries keep their order: each waits until those before it have ended. For the same
reason it is the endpoint that is left alone for a while after an attempt that failed.
"""

from __future__ import annotations

import time

from sqlalchemy import ColumnElement, and_, delete, exists, func, literal_column, or_, select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.types import String
from tenacity import RetryCallState, Retrying, wait_random_exponential

from app.core.database import database_now
from app.core.lease import Lease, LeaseTable
from app.webhooks.client import Answer
from app.webhooks.models import WebhookDelivery, WebhookEndpoint

BACK_OFF = wait_random_exponential(multiplier=20, min=10, max=4 * 3600)
"""The seconds until the next attempt: from 10 s to 20 s at first, later up to four hours."""
GIVEN_UP_SECONDS = 3 * 86400.0
"""The age at which a delivery that fails is not tried again."""
KEPT_SECONDS = 30 * 86400.0
"""The time for which deliveries can be looked at after they have ended."""

MOST_DELETED = 1000
"""Deliveries that one transaction deletes, so that it holds up no other for long."""
_GONE = 410
"""The status by which an endpoint says that it wants no more: https://www.rfc-editor.org/rfc/rfc9110#status.410."""
_PENDING = WebhookDelivery.status == literal_column("'pending'", String)
"""A literal, so that the partial index of pending deliveries is used."""

LEASES = LeaseTable(
    WebhookEndpoint,
    key=WebhookEndpoint.id,
    epoch=WebhookEndpoint.lease_epoch,
    until=WebhookEndpoint.lease_until,
    held=WebhookEndpoint.lease_until.is_not(None),
)
_CLAIMABLE = and_(
    WebhookEndpoint.enabled,
    WebhookEndpoint.not_before <= database_now(),
    or_(WebhookEndpoint.lease_until.is_(None), LEASES.expired),
    exists().where(WebhookDelivery.endpoint_id == WebhookEndpoint.id, _PENDING),
)


def has_claimable(session: Session) -> bool:
    """Whether there is an endpoint to claim; an idle process asks this first, as it takes no lock."""
    return session.scalar(select(WebhookEndpoint.id).where(_CLAIMABLE).limit(1)) is not None


def claim_next(session: Session, lease_seconds: float) -> WebhookEndpoint | None:
    """Lease an endpoint for which something waits, of the project with the fewest leased ones."""
    other = aliased(WebhookEndpoint)
    leased_of_project = (
        select(func.count())
        .where(other.project_id == WebhookEndpoint.project_id, other.lease_until > database_now())
        .scalar_subquery()
    )
    next_endpoint = (
        select(WebhookEndpoint.id)
        .where(_CLAIMABLE)
        .order_by(leased_of_project, WebhookEndpoint.not_before, WebhookEndpoint.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=WebhookEndpoint)
    )
    return session.scalar(LEASES.claim(next_endpoint, lease_seconds))


def find_due(session: Session, lease: Lease) -> tuple[WebhookEndpoint, WebhookDelivery] | None:
    """Return the delivery that the endpoint is sent next; None if there is none now, or the lease is lost."""
    due = (
        select(WebhookEndpoint, WebhookDelivery)
        .join(WebhookDelivery, WebhookDelivery.endpoint_id == WebhookEndpoint.id)
        .where(
            WebhookEndpoint.id == lease.id,
            WebhookEndpoint.lease_epoch == lease.epoch,
            LEASES.active,
            WebhookEndpoint.enabled,
            WebhookEndpoint.not_before <= database_now(),
            _PENDING,
        )
        .order_by(WebhookDelivery.seq)
        .limit(1)
    )
    found = session.execute(due).first()
    return None if found is None else (found[0], found[1])


def record_attempt(
    session: Session, lease: Lease, endpoint: WebhookEndpoint, delivery: WebhookDelivery, answer: Answer
) -> None:
    """Record what an attempt has come to, and when the next one may be made.

    An attempt that fails while the endpoint is changed is not held against what the endpoint is now: what
    waits is tried at once.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.verify(session, lease)  # nobody changes the endpoint until the transaction ends
    changed_at = session.scalar(select(WebhookEndpoint.updated_at).where(WebhookEndpoint.id == lease.id))
    counts_against_it = not answer.is_success and changed_at == endpoint.updated_at
    now = time.time()
    is_gone = counts_against_it and answer.status_code == _GONE
    is_given_up = is_gone or (counts_against_it and now >= delivery.created_at + GIVEN_UP_SECONDS)
    if answer.is_success:
        LEASES.update(session, lease, failures=0, not_before=0.0)
    elif counts_against_it:
        failures = endpoint.failures + 1
        pause = database_now() + _back_off(failures)
        LEASES.update(session, lease, failures=failures, not_before=pause, enabled=not is_gone)
    ended = "succeeded" if answer.is_success else "failed" if is_given_up else None
    attempt = {
        "attempts": delivery.attempts + 1,
        "attempted_at": now,
        "status_code": answer.status_code,
        "response_body": answer.body,
        "error": answer.error,
    }
    if ended is not None:
        attempt |= {"status": ended, "ended_at": now}
    session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery.id).values(attempt))
    if is_gone:
        give_up(session, lease.id, "The endpoint has answered with the status 410: it is gone.")
    elif counts_against_it:
        # What has waited behind it for as long is out of date as well.
        are_old = WebhookDelivery.created_at <= now - GIVEN_UP_SECONDS
        give_up(session, lease.id, "The endpoint did not take an earlier event for three days.", are_old)


def release(session: Session, lease: Lease) -> None:
    """Give the endpoint back, so that any process can claim it.

    Raises:
        LeaseLostError: this process has lost its lease.
    """
    LEASES.release(session, lease)


def give_up(session: Session, endpoint_id: str, reason: str, *conditions: ColumnElement[bool]) -> None:
    """End deliveries that wait for the endpoint as failed: all of them, or those that meet the conditions."""
    waiting = update(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id, _PENDING, *conditions)
    session.execute(waiting.values(status="failed", ended_at=time.time(), error=reason))


def delete_old(session: Session) -> bool:
    """Delete some of the deliveries that ended long ago; return whether there may be more of them."""
    old = (
        select(WebhookDelivery.seq)
        .where(WebhookDelivery.ended_at < time.time() - KEPT_SECONDS)
        .order_by(WebhookDelivery.ended_at)
        .limit(MOST_DELETED)
    )
    found = session.scalars(old).all()
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.seq.in_(found)))
    return len(found) == MOST_DELETED


def _back_off(failures: int) -> float:
    """Return the seconds until the next attempt after so many that failed."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = failures
    return BACK_OFF(state)

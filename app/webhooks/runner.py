"""Delivers events in the API processes: each claims the next endpoint for which something waits."""

from __future__ import annotations

import logging

from app.core.database import Database
from app.core.lease import Lease, LeaseLostError, async_heartbeat
from app.core.lease_runner import LeasedTransactions, LeaseRunner
from app.core.settings import Settings
from app.webhooks import queue
from app.webhooks.client import WebhookClient
from app.webhooks.message import signed_request
from app.webhooks.models import WebhookEndpoint
from app.webhooks.schemas import EventObject
from app.webhooks.service import current_secrets

log = logging.getLogger("toque.webhooks")

_MOST_ENDPOINTS = 64
"""Endpoints that one process delivers to at once, so that slow ones do not hold up the others."""
_MOST_IN_A_ROW = 50
"""Deliveries to one endpoint before others are looked at again."""


class Runner:
    """Claims endpoints in one API process, and delivers to them."""

    def __init__(self, settings: Settings, database: Database, client: WebhookClient) -> None:
        self._database = database
        self._client = client
        self._heartbeat_seconds = settings.heartbeat_seconds
        self._leases = LeaseRunner(settings, database, queue, self._execute, most=_MOST_ENDPOINTS)

    async def run(self) -> None:
        """Deliver until cancelled; the endpoints are then given back."""
        await self._leases.run()

    async def _execute(self, _endpoint: WebhookEndpoint, lease: Lease) -> None:
        def renew() -> None:
            with self._database.writer() as session:
                queue.LEASES.renew(session, lease, self._leases.lease_seconds)

        try:
            async with async_heartbeat(self._heartbeat_seconds, renew):
                await self._deliver(LeasedTransactions(self._database, lease), lease)
        except LeaseLostError as lost:
            log.info("%s: %s", lease.id, lost)
        except Exception:
            log.exception("%s waits until its lease expires", lease.id)

    async def _deliver(self, transactions: LeasedTransactions, lease: Lease) -> None:
        """Send what is due, in order. An attempt that fails is the last one for a while.

        Raises:
            LeaseLostError: the endpoint was disabled or deleted, or another process has claimed it.
        """
        for _ in range(_MOST_IN_A_ROW):
            due = await transactions.read(queue.find_due, lease)
            if due is None:
                break
            endpoint, delivery = due
            headers, body = signed_request(EventObject.of(delivery), current_secrets(endpoint))
            answer = await self._client.post(endpoint.url, headers, body)
            await transactions.write(queue.record_attempt, endpoint, delivery, answer)
        await transactions.write(queue.release)

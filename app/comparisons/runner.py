"""Runs comparisons in the API processes: each claims the next that is queued or whose process has died."""

from __future__ import annotations

import logging
from functools import partial

from anyio import BrokenWorkerProcess

from app.comparisons import queue
from app.comparisons.attempt import Attempt
from app.comparisons.chat_client import ChatClient
from app.comparisons.external import ExternalEndpoints
from app.comparisons.models import Comparison
from app.completions.gateway import Gateway
from app.core.database import Database
from app.core.errors import ToqueError
from app.core.lease import Lease, LeaseLostError
from app.core.lease_runner import LeaseRunner
from app.core.settings import Settings
from app.storage.base import Storage

log = logging.getLogger("toque.comparisons")

_MAX_RUNNING = 4
"""Comparisons that one process runs at once, so that a long one does not hold up the others."""


class Runner:
    """Claims and runs the comparisons of one API process."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, gateway: Gateway) -> None:
        self._database = database
        self._storage = storage
        self._gateway = gateway
        self._external = ExternalEndpoints(settings)
        self._leases = LeaseRunner(settings, database, queue, self._execute, most=_MAX_RUNNING)

    async def run(self) -> None:
        """Claim and run comparisons until cancelled; the unfinished ones then go back to the queue."""
        try:
            await self._leases.run()
        finally:
            await self._external.close()

    async def _execute(self, comparison: Comparison, lease: Lease) -> None:
        chat_client = ChatClient(self._gateway, self._external, comparison.project_id)
        lease_seconds = self._leases.lease_seconds
        attempt = Attempt(self._database, self._storage, chat_client, comparison, lease, lease_seconds)
        try:
            await attempt.run()
        except* LeaseLostError as lost:
            log.info("%s: %s", comparison.id, lost.exceptions[0])
        except* ToqueError as group:
            body = _first(group).body
            await self._fail(lease, body.code or "invalid_request", body.message)
        except* BrokenWorkerProcess:
            message = "The process that chooses examples and grades answers died: out of memory?"
            await self._fail(lease, "grading_failed", message)
        except* Exception:
            log.exception("%s failed", comparison.id)
            await self._fail(lease, "internal_error", "An internal error; the service's log has it.")

    async def _fail(self, lease: Lease, code: str, message: str) -> None:
        await self._leases.write(partial(queue.fail, code=code, message=message), lease)


def _first(group: ExceptionGroup[ToqueError]) -> ToqueError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first

"""How an idle worker waits for a job."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence

from sqlalchemy.orm import Session

from app.core.database import Database
from app.core.notifications import Notifications
from app.core.settings import Settings
from app.fine_tuning.claim import QUEUED_CHANNEL, seconds_until_due

_SELDOM = 10
"""With notifications, a worker looks for a job this many times more seldom."""
_LEAST_SECONDS = 1.0
"""Between two looks, even if there are more notifications than that: other workers have them, too."""


class Idleness:
    """Waits until there may be a job, or somebody wants the worker to go on."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self.notifications = Notifications(
            database, QUEUED_CHANNEL, self._on_queued, url=settings.database_direct_url
        )
        self._base_models: Collection[str] = ()
        self._is_over = threading.Event()
        self._is_ended = threading.Event()
        self._looked_at = 0.0

    def wait(self, seconds: float) -> None:
        """Waits so long, or until a job on one of the worker's base models is queued."""
        self._is_over.wait(seconds)
        least = min(_LEAST_SECONDS, self._settings.poll_seconds)
        self._is_ended.wait(max(0.0, self._looked_at + least - time.monotonic()))
        self._is_over.clear()
        self._looked_at = time.monotonic()

    def interrupt(self) -> None:
        """Ends the wait that is going on, from any thread."""
        self._is_over.set()

    def end(self) -> None:
        """Ends every wait at once, from any thread."""
        self._is_ended.set()
        self._is_over.set()

    def seconds(self, session: Session, base_models: Sequence[str]) -> float:
        """Returns how long to wait after no job on these base models was found."""
        self._base_models = base_models
        often = self._settings.poll_seconds
        if not self.notifications.arrive:
            return often
        seldom = min(_SELDOM * often, max(often, self._settings.heartbeat_seconds))
        due_in = seconds_until_due(session, base_models)
        return seldom if due_in is None else min(seldom, due_in)

    def _on_queued(self, base_model: str) -> None:
        if base_model in self._base_models:
            self._is_over.set()

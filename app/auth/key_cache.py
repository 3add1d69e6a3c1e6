"""The API keys that a process has been asked with lately, so that a request seldom waits for the database."""

from __future__ import annotations

import time

from anyio import CapacityLimiter

from app.auth import service
from app.auth.caller import Caller
from app.auth.last_uses import LastUses
from app.core.database import Database
from app.core.stale_while_revalidate import StaleWhileRevalidate

_LONGEST_SECRET = 512
_LOOKUPS_AT_ONCE = 4
"""Few, since whoever sends made-up keys must not occupy the threads that others' requests run in."""


class KeyCache:
    """Authenticates the requests of one process. Changes take effect within three seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._callers: StaleWhileRevalidate[str, Caller] = StaleWhileRevalidate(
            self._find_caller,
            fresh_seconds=1.0,
            stale_seconds=3.0,
            limiter=CapacityLimiter(_LOOKUPS_AT_ONCE),
        )
        self.last_uses = LastUses(database)

    async def authenticate(self, secret: str | None) -> Caller:
        """Return the caller whose key has this secret.

        Raises:
            AuthenticationError: there is no secret, or no valid key has it.
            SQLAlchemyError: the key is not known yet, and the database cannot be read.
        """
        if not secret:
            raise service.no_key()
        if len(secret) > _LONGEST_SECRET:
            raise service.invalid_key()
        caller = await self._callers.get(service.digest(secret))
        now = time.time()
        if caller.expires_at is not None and caller.expires_at <= now:
            raise service.expired_key()
        self.last_uses.record(caller.key_id, now)
        return caller

    def _find_caller(self, digest: str) -> Caller:
        with self._database.reader() as session:
            return service.find_caller(session, digest)

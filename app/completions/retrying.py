"""How the service retries its own requests to engines, which nobody waits for at a connection."""

from __future__ import annotations

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from app.core.database import DATABASE_AWAY
from app.core.errors import ToqueError, UnavailableError

TRIES = 6
BACK_OFF = wait_exponential_jitter(multiplier=0.2, max=5, jitter=0.2)
_WAITED_FOR = {"engine_unavailable"}
"""Errors that pass by themselves, however long that takes; others may be caused by the request."""


def engine_retrying() -> AsyncRetrying:
    """Return the policy: an engine or a database that is away is waited for, and a failure tried again."""
    return AsyncRetrying(
        retry=retry_if_exception_type((UnavailableError, *DATABASE_AWAY)),
        wait=BACK_OFF,
        stop=is_hopeless,
        reraise=True,
    )


def is_hopeless(state: RetryCallState) -> bool:
    """Whether an engine has failed too often on a request that it was there for."""
    error = state.outcome.exception() if state.outcome else None
    waited_for = isinstance(error, DATABASE_AWAY) or (
        isinstance(error, ToqueError) and error.body.code in _WAITED_FOR
    )
    return not waited_for and state.attempt_number >= TRIES

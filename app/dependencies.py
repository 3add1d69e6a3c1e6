"""What routers ask for: the context of the request, a session, and whether the request was sent before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, cast

from anyio import CapacityLimiter, from_thread
from fastapi import Depends, Header, Request
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from sqlalchemy.orm import Session

from app.auth import service as auth_service
from app.auth.caller import Caller
from app.context import Context
from app.core.database import KEPT_AT_ONCE, Database
from app.core.idempotency import IdempotentRequest
from app.core.scope import CALLER
from app.core.settings import Settings
from app.core.threads import entered_in_thread

# Dependencies with `yield` end after the response unless declared with scope="function":
# a commit that fails must still be able to change the status.


async def _settings(request: Request) -> Settings:
    return cast("Settings", request.app.state.settings)


async def _database(request: Request) -> Database:
    return cast("Database", request.app.state.database)


class SessionSlots:
    """How many requests have a session at once.

    A request keeps its connection while it waits for a thread to run its route or to check its answer.
    Without a bound, all threads could wait for a connection, and all connections for a thread.
    """

    def __init__(self) -> None:
        self.reading = CapacityLimiter(KEPT_AT_ONCE)
        self.writing = CapacityLimiter(KEPT_AT_ONCE)


LONG_ROUTES_AT_ONCE = 8
"""Requests, of those that wait for a child process, that have a thread at once: it does nothing meanwhile, so
they would take all threads of the process while two of them get on."""


async def _long_routes(request: Request) -> CapacityLimiter:
    return cast("CapacityLimiter", request.app.state.long_routes)


LongRoutesDep = Annotated[CapacityLimiter, Depends(_long_routes)]
"""For threads that wait for a child process: `to_thread.run_sync(…, limiter=long_routes)`."""


async def _long_route(long_routes: LongRoutesDep) -> AsyncIterator[None]:
    async with long_routes:
        yield


LongRoute = Depends(_long_route, scope="function")
"""For a route that runs in a thread as a whole, and waits for a child process there."""


SettingsDep = Annotated[Settings, Depends(_settings)]
DatabaseDep = Annotated[Database, Depends(_database)]
"""For long work, which opens its own short transactions."""


async def _read_session(request: Request, database: DatabaseDep) -> AsyncIterator[Session]:
    slots = cast("SessionSlots", request.app.state.session_slots)
    async with slots.reading, entered_in_thread(database.reader()) as session:
        yield session


async def _write_session(request: Request, database: DatabaseDep) -> AsyncIterator[Session]:
    slots = cast("SessionSlots", request.app.state.session_slots)
    async with slots.writing, entered_in_thread(database.writer()) as session:
        yield session


ReadSession = Annotated[Session, Depends(_read_session, scope="function")]
"""For requests that change nothing."""
WriteSession = Annotated[Session, Depends(_write_session, scope="function")]
"""One transaction, committed when the route returns and rolled back when it raises."""

bearer = HTTPBearer(
    auto_error=False, description="An API key: `toque keys create`, or the one printed at first start"
)
"""Describes authentication in the OpenAPI document; it is `app.api.authentication` that does it."""


def bearer_secret(request: Request) -> str | None:
    """Return the secret of the API key that the request came with, if any."""
    scheme, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    return secret if scheme.lower() == "bearer" else None


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """Return the caller of a request, by its ASGI scope.

    Raises:
        AuthenticationError: nobody has authenticated it.
    """
    caller = cast("Caller | None", scope.get(CALLER))
    if caller is None:
        raise auth_service.no_key()
    return caller


async def _context(
    request: Request, settings: SettingsDep, _credentials: Annotated[object, Depends(bearer)]
) -> Context:
    caller = caller_of(request.scope)
    return Context(caller.project_id, settings, request.app.state.storage, caller)


ContextDep = Annotated[Context, Depends(_context, scope="function")]
"""The context of the caller's project; a request without a valid API key is refused."""


async def _idempotent_request(
    request: Request,
    context: ContextDep,
    idempotency_key: Annotated[str | None, Header(max_length=255, min_length=1)] = None,
    x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> IdempotentRequest:
    count = x_stainless_retry_count
    return IdempotentRequest(
        context.project_id,
        idempotency_key,
        retry_count=int(count) if count is not None and count.isdecimal() and len(count) < 9 else None,
        is_abandoned=lambda: from_thread.run(request.is_disconnected),  # routes that create run in threads
    )


IdempotentRequestDep = Annotated[IdempotentRequest, Depends(_idempotent_request, scope="function")]
"""For routes that create: what an equal request has created before is not created again."""

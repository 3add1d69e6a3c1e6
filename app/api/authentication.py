"""Refuses requests by their headers alone: who sends no valid key, or one whose role is not enough.

Authentication stands in front of every route under /v1 and authorization at each route, both before a byte of
the body is asked for. Pure ASGI, as in `app.api.middleware`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import cast

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.error_handlers import respond_to
from app.audit.recorder import ACTOR, Actor
from app.auth.caller import Caller
from app.auth.key_cache import KeyCache
from app.auth.roles import Action, action_of
from app.console.error_page import is_in_console
from app.console.navigation import Section
from app.console.session import CSRF_HEADER, SESSION, changes, check_origin, session_of
from app.core.errors import AuthenticationError
from app.core.scope import CALLER
from app.dependencies import bearer_secret, caller_of

_PROTECTED = "/v1/"


class Authentication:
    """Puts the `Caller` into the scope of requests under /v1, or answers 401.

    The console's scripts call the API with the cookie of their session in place of a key. Requests for the
    console itself go on without a caller, since there is a page for them, too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            request = Request(scope, receive)
            try:
                if scope["path"].startswith(_PROTECTED):
                    _admit(request, await _caller_of_api(request))
                elif is_in_console(request):
                    await _admit_to_console(request)
            except Exception as error:  # the app's own error handlers are behind this
                await (await respond_to(request, error))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _admit(request: Request, caller: Caller) -> None:
    request.scope[CALLER] = caller
    # Requests have a context each, so that this ends with the request.
    ACTOR.set(Actor("api_key", caller.key_id, request.client.host if request.client else None))


async def _caller_of_api(request: Request) -> Caller:
    if "authorization" not in request.headers and (session := await session_of(request)):
        if changes(request):
            check_origin(request)
            session.check_token(request.headers.get(CSRF_HEADER))
        return session.caller
    return await cast("KeyCache", request.app.state.keys).authenticate(bearer_secret(request))


async def _admit_to_console(request: Request) -> None:
    with suppress(AuthenticationError):
        if session := await session_of(request):
            request.scope[SESSION] = session
            _admit(request, session.caller)


def authorize(routes: Iterable[BaseRoute]) -> None:
    """Let every route under /v1 answer only those whose role allows what it does.

    Raises:
        LookupError: a route has no rule in `app.auth.roles`, or is of a kind that is not known here.
    """
    for route in routes:
        if not isinstance(route, Route):  # as newer versions of FastAPI keep the routes of a router
            raise LookupError(f"{route!r} is no route that can be authorized")
        if isinstance(route, APIRoute) and route.path.startswith(_PROTECTED):
            for method in route.methods:
                route.app = _Authorization(route.app, action_of(method, route.path))


def authorize_section(section: Section) -> None:
    """Let every route of a section of the console answer only those whose role allows what it does.

    Raises:
        LookupError: a route is of a kind that is not known here.
    """
    for route in section.router.routes:
        if not isinstance(route, APIRoute):
            raise LookupError(f"{route!r} is no route that can be authorized")
        action = section.reads if "GET" in route.methods else section.changes
        route.app = _Authorization(route.app, action)


class _Authorization:
    """A route for callers who may do its action."""

    def __init__(self, app: ASGIApp, action: Action) -> None:
        self._app = app
        self._action = action

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller_of(scope).check_action(self._action)
        await self._app(scope, receive, send)

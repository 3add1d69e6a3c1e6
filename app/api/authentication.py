"""Refuses requests by their headers alone: who sends no valid key, or one whose role is not enough.

Authentication stands in front of every route under /v1 and authorization at each route, both before a byte of
the body is asked for. Pure ASGI, as in `app.api.middleware`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.error_handlers import respond_to
from app.audit.recorder import ACTOR, Actor
from app.auth.key_cache import KeyCache
from app.auth.roles import Action, action_of
from app.core.scope import CALLER
from app.dependencies import bearer_secret, caller_of

_PROTECTED = "/v1/"


class Authentication:
    """Puts the `Caller` into the scope of requests under /v1, or answers 401."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"].startswith(_PROTECTED):
            request = Request(scope, receive)
            keys = cast("KeyCache", request.app.state.keys)
            try:
                caller = scope[CALLER] = await keys.authenticate(bearer_secret(request))
            except Exception as error:  # the app's own error handlers are behind this
                await (await respond_to(request, error))(scope, receive, send)
                return
            # Requests have a context each, so that this ends with the request.
            ACTOR.set(Actor("api_key", caller.key_id, request.client.host if request.client else None))
        await self._app(scope, receive, send)


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


class _Authorization:
    """A route for callers who may do its action."""

    def __init__(self, app: ASGIApp, action: Action) -> None:
        self._app = app
        self._action = action

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller_of(scope).check_action(self._action)
        await self._app(scope, receive, send)

"""The routes of the console, collected: a page is added with one line here."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.auth.roles import Action
from app.console import assets, events, overview, sign_in
from app.console.navigation import Section

SECTIONS = (Section("Overview", "/console", "overview", overview.router, Action.READ_MODELS, Action.ASK),)
"""In the order of the navigation."""


def console_routes() -> Iterator[BaseRoute]:
    """Return all routes; those that answer GET also answer HEAD, as pages do (RFC 9110, section 9.1)."""
    routers = (sign_in.router, events.router, assets.router, *(section.router for section in SECTIONS))
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute) and "GET" in route.methods and route.path != events.PATH:
                route.methods.add("HEAD")
            yield route

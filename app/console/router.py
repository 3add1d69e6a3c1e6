"""The routes of the console, collected: a page is added with one line here."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.auth.roles import Action
from app.console import assets, events, overview, sign_in
from app.console.aliases.router import router as aliases_router
from app.console.comparisons.router import router as comparisons_router
from app.console.datasets.router import router as datasets_router
from app.console.jobs.router import router as jobs_router
from app.console.model_pages.router import router as models_router
from app.console.navigation import Section
from app.console.operations.router import router as operations_router
from app.console.playground.router import router as playground_router

SECTIONS = (
    Section("Overview", "/console", "overview", overview.router, Action.READ_MODELS, Action.TRAIN),
    Section("Datasets", "/console/datasets", "datasets", datasets_router, Action.READ, Action.TRAIN),
    Section("Jobs", "/console/jobs", "jobs", jobs_router, Action.READ, Action.TRAIN),
    Section("Playground", "/console/playground", "playground", playground_router, Action.ASK, Action.ASK),
    Section(
        "Comparisons", "/console/comparisons", "comparisons", comparisons_router, Action.READ, Action.TRAIN
    ),
    Section("Models", "/console/models", "models", models_router, Action.READ, Action.TRAIN),
    Section("Aliases", "/console/aliases", "aliases", aliases_router, Action.READ, Action.MANAGE),
    Section(
        "Operations", "/console/operations", "operations", operations_router, Action.READ, Action.ADMINISTER
    ),
)
"""In the order of the navigation."""


def console_routes() -> Iterator[BaseRoute]:
    """Return all routes; those that answer GET also answer HEAD, as pages do (RFC 9110, section 9.1)."""
    routers = (sign_in.router, events.router, assets.router, *(section.router for section in SECTIONS))
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute) and "GET" in route.methods and route.path != events.PATH:
                route.methods.add("HEAD")
            yield route

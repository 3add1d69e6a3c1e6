"""The HTTP service, put together: the only module that knows every part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache, partial

from anyio import CapacityLimiter
from fastapi import FastAPI
from starlette.routing import BaseRoute

from app import __version__
from app.api import health
from app.api.authentication import Authentication, authorize, authorize_section
from app.api.error_handlers import install_error_handlers
from app.api.exposition import Exposition
from app.api.metrics import Metrics
from app.api.middleware import RequestMiddleware
from app.api.openapi import describe
from app.api.readiness import Readiness
from app.api.refusal_pace import RefusalPace
from app.audit.router import router as audit_router
from app.auth.key_cache import KeyCache
from app.base_models.fetcher import BaseFetcher
from app.batches.router import router as batches_router
from app.batches.runner import Runner as BatchRunner
from app.comparisons import service as comparisons_service
from app.comparisons.router import router as comparisons_router
from app.comparisons.runner import Runner
from app.completions.background import BackgroundLoad
from app.completions.gateway import Gateway
from app.completions.generation_metrics import GenerationMetrics
from app.completions.replicas import Replicas
from app.completions.router import router as completions_router
from app.console.events import Watchers
from app.console.jobs.curve_cache import CurveCache
from app.console.router import SECTIONS, console_routes
from app.console.session import Sessions
from app.core.database import Database
from app.core.settings import Settings
from app.dependencies import LONG_ROUTES_AT_ONCE, SessionSlots
from app.files.checker import Checker
from app.files.router import router as files_router
from app.fine_tuning import training_files
from app.fine_tuning.router import router as fine_tuning_router
from app.graders.router import router as graders_router
from app.limits.rate_limiter import RateLimiter
from app.limits.router import router as limits_router
from app.models.adapters.router import adapters_router, models_router
from app.models.aliases.router import models_router as aliased_models_router
from app.models.aliases.router import router as aliases_router
from app.models.promotion.router import router as promotion_router
from app.organization.router import router as organization_router
from app.project_data.router import router as project_data_router
from app.responses.router import router as responses_router
from app.storage import open_storage
from app.uploads.router import router as uploads_router
from app.usage.aggregator import UsageAggregator
from app.usage.router import router as usage_router
from app.webhooks.client import WebhookClient
from app.webhooks.router import router as webhooks_router
from app.webhooks.runner import Runner as WebhookRunner


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the service for these settings, which are read from the environment by default."""
    settings = settings or Settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.settings = settings
        app.state.database = Database(settings.sqlalchemy_url)
        app.state.session_slots = SessionSlots()
        app.state.long_routes = CapacityLimiter(LONG_ROUTES_AT_ONCE)
        app.state.storage = open_storage(settings)
        app.state.find_comparison = comparisons_service.get_comparison
        keys = app.state.keys = KeyCache(app.state.database)
        app.state.sessions = Sessions(app.state.database, keys)
        watchers = app.state.watchers = Watchers(app.state.database, settings, app.state.storage)
        app.state.curves = CurveCache()
        usage = UsageAggregator(app.state.database)
        replicas = app.state.replicas = Replicas(settings, app.state.database)
        rate_limiter = RateLimiter(app.state.database)
        gateway = app.state.gateway = Gateway(
            settings,
            app.state.database,
            replicas,
            usage,
            rate_limiter,
            GenerationMetrics(metrics.registry),
        )
        app.state.exposition = Exposition(
            settings, app.state.database, app.state.storage, replicas, metrics.registry
        )
        app.state.readiness = Readiness(settings, app.state.database, replicas)
        runner = Runner(settings, app.state.database, app.state.storage, gateway)
        background_load = BackgroundLoad(replicas)
        batch_runner = BatchRunner(settings, app.state.database, app.state.storage, gateway, background_load)
        admit = partial(training_files.admit_waiting, app.state.database, app.state.storage, settings)
        checker = app.state.checker = Checker(
            settings, app.state.database, app.state.storage, admit, training_files.is_awaited
        )
        webhook_client = app.state.webhook_client = WebhookClient(settings)
        webhook_runner = WebhookRunner(settings, app.state.database, webhook_client)
        parts = (
            replicas,
            keys.last_uses,
            usage,
            rate_limiter,
            background_load,
            runner,
            batch_runner,
            checker,
            webhook_runner,
            watchers,
            BaseFetcher(settings, app.state.database, app.state.storage),
        )
        background = [asyncio.create_task(part.run()) for part in parts]
        try:
            yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await keys.last_uses.flush()
            await usage.flush()
            await replicas.close()
            await webhook_client.close()
            app.state.database.dispose()

    app = FastAPI(
        title="Toque",
        summary="Fine-tuning and serving of many LoRA adapters over one base model, on your own machines",
        version=__version__,
        lifespan=lifespan,
    )
    app.openapi = cache(partial(describe, app))
    app.state.sections = SECTIONS
    install_error_handlers(app)
    app.router.routes.extend(_routes())
    app.add_middleware(Authentication)
    app.add_middleware(
        RequestMiddleware,
        max_body_bytes=settings.max_body_bytes,
        metrics=metrics,
        trusted_proxies=settings.trusted_proxies,
    )
    if settings.refusals_per_second:
        app.add_middleware(RefusalPace, per_second=settings.refusals_per_second)
    return app


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """Return the routes in the order in which they are tried: first those that are asked most.

    They are those of the routers themselves, since FastAPI takes 0.1 s to build them once more for an app.
    """
    routers = (
        completions_router,
        responses_router,
        files_router,
        uploads_router,
        fine_tuning_router,
        models_router,
        adapters_router,
        aliased_models_router,
        aliases_router,
        comparisons_router,
        graders_router,
        batches_router,
        promotion_router,
        usage_router,
        organization_router,
        project_data_router,
        limits_router,
        audit_router,
        webhooks_router,
        health.router,
    )
    routes = (*(route for router in routers for route in router.routes), *console_routes())
    authorize(routes)
    for section in SECTIONS:
        authorize_section(section)
    return routes

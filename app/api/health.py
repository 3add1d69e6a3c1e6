"""`/health` and `/metrics`: for load balancers, supervisors and dashboards; no key needed."""

from __future__ import annotations

from typing import Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app.api.exposition import Exposition
from app.api.readiness import Readiness
from app.core.errors import ErrorBody

router = APIRouter(tags=["Health"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """Can jobs be trained and completions answered? Each check says `ok` or why not."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]
    error: ErrorBody | None = None


@router.get("/health/live")
async def live() -> Live:
    """Whether the process answers."""
    return Live()


@router.get("/health/ready", responses={503: {"model": Ready, "description": "Not ready, with the reasons"}})
async def ready(request: Request) -> Response:
    """Whether jobs can be trained and completions answered, and if not why."""
    checks = await cast("Readiness", request.app.state.readiness).checks()
    problems = [f"{name}: {state}" for name, state in checks.items() if state != "ok"]
    if not problems:
        return JSONResponse(Ready(status="ready", checks=checks).model_dump(exclude_none=True))
    error = ErrorBody(message="; ".join(problems), type="server_error", code="not_ready")
    body = Ready(status="not_ready", checks=checks, error=error)
    return JSONResponse(body.model_dump(), 503, {"retry-after": "5"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    content = await cast("Exposition", request.app.state.exposition).read()
    return Response(content, media_type="text/plain; version=0.0.4")

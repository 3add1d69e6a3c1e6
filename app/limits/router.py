"""`…/rate_limits`: what projects and keys may use, as OpenAI's administration API has it."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from app.core.errors import ERROR_RESPONSES
from app.core.pagination import Page
from app.dependencies import ReadSession, SettingsDep, WriteSession, bearer
from app.limits import service
from app.limits.schemas import RateLimitObject, UpdateRateLimit, model_of

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}",
    tags=["Administration"],
    responses=ERROR_RESPONSES,
    dependencies=[Depends(bearer)],
)


@router.get("/rate_limits")
def list_project_rate_limits(
    project_id: str, session: ReadSession, settings: SettingsDep
) -> Page[RateLimitObject]:
    """What the project may ask: of all models together, and of each base model with its fine-tuned ones."""
    limits = service.list_limits(session, settings, project_id)
    return Page[RateLimitObject].of([RateLimitObject.of(each) for each in limits], has_more=False)


@router.post("/rate_limits/{rate_limit_id}")
def update_project_rate_limit(
    project_id: str, rate_limit_id: str, body: UpdateRateLimit, session: WriteSession, settings: SettingsDep
) -> RateLimitObject:
    """Changes a limit of the project, within three seconds; null lifts it."""
    model = model_of(rate_limit_id)
    return RateLimitObject.of(service.set_limit(session, settings, project_id, model, body))


@router.get("/api_keys/{api_key_id}/rate_limits")
def list_key_rate_limits(
    project_id: str,
    api_key_id: str,
    session: ReadSession,
    settings: SettingsDep,
) -> Page[RateLimitObject]:
    """What the key may ask, beside what its project may."""
    limits = service.list_limits(session, settings, project_id, api_key_id)
    return Page[RateLimitObject].of([RateLimitObject.of(each) for each in limits], has_more=False)


@router.post("/api_keys/{api_key_id}/rate_limits/{rate_limit_id}")
def update_key_rate_limit(
    project_id: str,
    api_key_id: str,
    rate_limit_id: str,
    body: UpdateRateLimit,
    session: WriteSession,
    settings: SettingsDep,
) -> RateLimitObject:
    """Changes a limit of the key, within three seconds; null lifts it."""
    model = model_of(rate_limit_id)
    return RateLimitObject.of(service.set_limit(session, settings, project_id, model, body, api_key_id))

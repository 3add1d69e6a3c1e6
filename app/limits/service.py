"""Rules on rate limits: which there are, how they are set, and which bind a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth.service import get_key, get_project
from app.core.errors import NotFoundError
from app.core.settings import Settings
from app.limits.models import RateLimit
from app.limits.quota import Kind, Quota, Quotas
from app.limits.schemas import UpdateRateLimit
from app.models.catalogue import Catalogue

ALL_MODELS = "all"
"""What stands for all models together where a limit is named after a base model."""
_KINDS: tuple[tuple[Kind, str], ...] = (
    ("requests", "max_requests_per_1_minute"),
    ("tokens", "max_tokens_per_1_minute"),
    ("concurrent_requests", "max_concurrent_requests"),
)


def list_limits(
    session: Session, settings: Settings, project_id: str, api_key_id: str = ""
) -> Sequence[RateLimit]:
    """Return the limits of a project, or of one of its keys: for all models together, then for each base.

    Raises:
        NotFoundError: the project does not exist, or has no such key.
    """
    _check_owner(session, project_id, api_key_id)
    stored = {each.base_model: each for each in _stored(session, project_id, api_key_id)}
    bases = (entry.name for entry in Catalogue.read(session, settings).entries)
    names = dict.fromkeys(["", *bases, *stored])
    return [stored.get(name) or RateLimit(project_id=project_id, base_model=name) for name in names]


def set_limit(
    session: Session,
    settings: Settings,
    project_id: str,
    model: str,
    change: UpdateRateLimit,
    api_key_id: str = "",
) -> RateLimit:
    """Change what a project, or one of its keys, may ask of a base model, or of `ALL_MODELS` together.

    Raises:
        NotFoundError: the project does not exist, has no such key, or there is no such base model.
        InvalidRequestError: the project is archived.
    """
    get_project(session, project_id, to_change=True)
    _check_owner(session, project_id, api_key_id)
    name = "" if model == ALL_MODELS else model
    found = next((each for each in _stored(session, project_id, api_key_id) if each.base_model == name), None)
    if found is None:
        if name and Catalogue.read_for(session, settings, name).find(name) is None:
            raise NotFoundError(
                f"No base model '{model[:255]}': limits are set for base models, and hold for what is "
                f"fine-tuned from them, or for '{ALL_MODELS}'.",
                code="rate_limit_not_found",
                param="rate_limit_id",
            )
        found = RateLimit(project_id=project_id, api_key_id=api_key_id, base_model=name)
        session.add(found)
    values: dict[str, Any] = change.model_dump(exclude_unset=True)
    for field, value in values.items():
        setattr(found, field, value)
    session.flush()
    return found


def find_quotas(session: Session, project_id: str, key_id: str) -> Quotas:
    """Return what the requests of a key are counted against."""
    own = RateLimit.api_key_id.in_(("", key_id))
    limits = session.scalars(select(RateLimit).where(RateLimit.project_id == project_id, own))
    of_all: list[Quota] = []
    by_base_model: dict[str, list[Quota]] = {}
    for limit in limits:
        into = by_base_model.setdefault(limit.base_model, []) if limit.base_model else of_all
        for kind, field in _KINDS:
            most = getattr(limit, field)
            if most is not None:
                into.append(Quota(f"{limit.id}:{kind}", project_id, kind, most))
    return Quotas(of_all, by_base_model)


def _stored(session: Session, project_id: str, api_key_id: str) -> Sequence[RateLimit]:
    same = RateLimit.project_id == project_id, RateLimit.api_key_id == api_key_id
    return session.scalars(select(RateLimit).where(*same).order_by(RateLimit.base_model)).all()


def _check_owner(session: Session, project_id: str, api_key_id: str) -> None:
    if api_key_id:
        get_key(session, project_id, api_key_id)
    else:
        get_project(session, project_id)

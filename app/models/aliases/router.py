"""`/v1/aliases`, and the deletion of models, which an alias can stand in the way of."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query, Request

from app.core.errors import ERROR_RESPONSES
from app.core.pagination import Page
from app.dependencies import ContextDep, IdempotentRequestDep, ReadSession, WriteSession
from app.models.adapters.schemas import ModelDeleted
from app.models.aliases import service
from app.models.aliases.schemas import (
    AliasChangeObject,
    AliasDeleted,
    AliasName,
    AliasObject,
    PutAlias,
    RollBackAlias,
)
from app.models.aliases.service import FindComparison

router = APIRouter(prefix="/v1/aliases", tags=["Aliases"], responses=ERROR_RESPONSES)
models_router = APIRouter(prefix="/v1/models", tags=["Models"], responses=ERROR_RESPONSES)


async def _find_comparison(request: Request) -> FindComparison:
    return cast("FindComparison", request.app.state.find_comparison)


FindComparisonDep = Annotated[FindComparison, Depends(_find_comparison)]
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("")
def list_aliases(
    context: ContextDep, session: ReadSession, after: str | None = None, limit: Limit = 20
) -> Page[AliasObject]:
    """The project's aliases, newest first."""
    aliases, has_more = service.list_aliases(session, context.project_id, after=after, limit=limit)
    return Page[AliasObject].of([AliasObject.of(alias) for alias in aliases], has_more)


@router.put("/{name}")
def put_alias(
    name: AliasName,
    body: PutAlias,
    context: ContextDep,
    creating: IdempotentRequestDep,
    session: WriteSession,
    find_comparison: FindComparisonDep,
) -> AliasObject:
    """Creates an alias, or points it to another model or to a split; within two seconds everywhere."""
    return AliasObject.of(service.put_alias(session, context, creating, name, body, find_comparison))


@router.get("/{name}")
def retrieve_alias(name: AliasName, context: ContextDep, session: ReadSession) -> AliasObject:
    """One alias."""
    return AliasObject.of(service.get_alias(session, context.project_id, name))


@router.get("/{name}/history")
def list_changes(
    name: AliasName,
    context: ContextDep,
    session: ReadSession,
    after: str | None = None,
    limit: Limit = 20,
) -> Page[AliasChangeObject]:
    """Every change of an alias, newest first; also of one that is deleted."""
    changes, has_more = service.list_changes(session, context.project_id, name, after=after, limit=limit)
    return Page[AliasChangeObject].of(
        [AliasChangeObject.of(change, key) for change, key in changes], has_more
    )


@router.post("/{name}/rollback")
def roll_back_alias(
    name: AliasName,
    context: ContextDep,
    creating: IdempotentRequestDep,
    session: WriteSession,
    body: RollBackAlias | None = None,
) -> AliasObject:
    """Points an alias to where it pointed before."""
    request = body or RollBackAlias()
    return AliasObject.of(service.roll_back(session, context, creating, name, request))


@router.delete("/{name}")
def delete_alias(
    name: AliasName,
    context: ContextDep,
    session: WriteSession,
    version: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> AliasDeleted:
    """Ends an alias; its history stays."""
    return AliasDeleted(id=service.delete_alias(session, context, name, version).name)


@models_router.delete("/{model}")
def delete_model(model: str, context: ContextDep, session: WriteSession) -> ModelDeleted:
    """Deletes a fine-tuned model or a checkpoint that no alias points to."""
    return ModelDeleted(id=service.delete_model(session, context, model).name)

"""Aliases: creating, moving, rolling back and deleting them, each move with its line of history."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.auth.models import ApiKey
from app.context import Context
from app.core.errors import ConflictError, InvalidRequestError, NotFoundError
from app.core.idempotency import IdempotentRequest
from app.core.pagination import fetch_page
from app.core.settings import Settings
from app.models.adapters import service as adapters_service
from app.models.adapters.models import Adapter
from app.models.aliases.models import Alias, AliasChange, ChangeKind, Share
from app.models.aliases.resolution import find_model, is_models_name
from app.models.aliases.schemas import PutAlias, RollBackAlias
from app.models.catalogue import Catalogue
from app.webhooks import outbox

FindComparison = Callable[[Session, str, str], object]
"""Finds a comparison by its project's id and its own, for `put_alias`, which cannot import comparisons.

Raises:
    NotFoundError: it does not exist, or is another project's.
"""


@dataclass(frozen=True, slots=True)
class Move:
    """Where an alias is to point, and what its history says of that."""

    kind: ChangeKind
    split: list[Share]
    reason: str | None = None
    comparison_id: str | None = None
    rules: list[dict[str, Any]] | None = None
    restored_version: int | None = None


def get_alias(session: Session, project_id: str, name: str) -> Alias:
    """Return the project's alias.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    alias = _find(session, project_id, name)
    if alias is None:
        raise _not_found(name)
    return alias


def find_alias(session: Session, context: Context, name: str) -> Alias | None:
    """Return the project's alias, or None if it has none of that name.

    Raises:
        InvalidRequestError: the name is a model's.
    """
    _refuse_models_name(session, context.settings, name)
    return _find(session, context.project_id, name)


def list_aliases(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Alias], bool]:
    """Return a page of the project's aliases, newest first, and whether more follow."""
    query = select(Alias).where(Alias.project_id == project_id, Alias.deleted_at.is_(None))
    key = (Alias.created_at, Alias.name)
    return fetch_page(session, query, key, identity=Alias.name, after=after, limit=limit)


def list_changes(
    session: Session, project_id: str, name: str, *, after: str | None, limit: int
) -> tuple[Sequence[tuple[AliasChange, ApiKey]], bool]:
    """Return a page of the alias's history, newest first, and whether more follows; it outlives the alias.

    Raises:
        NotFoundError: the project never had such an alias.
    """
    alias = session.scalar(select(Alias).where(Alias.project_id == project_id, Alias.name == name))
    if alias is None:
        raise _not_found(name)
    query = select(AliasChange).where(AliasChange.alias_id == alias.id)
    changes, has_more = fetch_page(
        session, query, (AliasChange.version,), identity=AliasChange.id, after=after, limit=limit
    )
    return [(change, session.get_one(ApiKey, change.key_id)) for change in changes], has_more


def put_alias(
    session: Session,
    context: Context,
    creating: IdempotentRequest,
    name: str,
    request: PutAlias,
    find_comparison: FindComparison,
) -> Alias:
    """Create the alias or point it elsewhere.

    Raises:
        InvalidRequestError: the name is a model's, or the target is another alias.
        NotFoundError: the project has no such model, or no such comparison.
        FailedDependencyError: the model is quarantined.
        ConflictError: the alias is not at the version that the request replaces.
    """

    def move() -> AliasChange:
        split = _requested_split(session, context, request)
        if request.comparison is not None:
            try:
                find_comparison(session, context.project_id, request.comparison)
            except NotFoundError as error:
                error.body.param = "comparison"
                raise
        alias = lock_alias(session, context, name, request.version)
        return point(
            session,
            context,
            name,
            alias,
            Move("set", split, reason=request.reason, comparison_id=request.comparison),
        )

    find = partial(session.get_one, AliasChange)
    creating.once(session, "alias", [name, request.model_dump()], find=find, create=move)
    return get_alias(session, context.project_id, name)


def roll_back(
    session: Session, context: Context, creating: IdempotentRequest, name: str, request: RollBackAlias
) -> Alias:
    """Point the alias to where it pointed before; again, to where it pointed before that.

    A target that was rolled back from is never returned to.

    Raises:
        NotFoundError: no such alias, or the model before was deleted.
        FailedDependencyError: the model before is quarantined.
        ConflictError: the alias has moved since that version, or never pointed elsewhere.
    """

    def move() -> AliasChange:
        alias = _lock_existing(session, context.project_id, name, request.version)
        before = change_before(session, alias)
        if before is None:
            raise ConflictError(
                f"The alias '{name}' has not pointed elsewhere before.",
                code="nothing_to_roll_back",
                param="name",
            )
        split = _checked(session, context, [("name", share) for share in before.split_after])
        return point(
            session,
            context,
            name,
            alias,
            Move(
                "rolled_back",
                split,
                reason=request.reason,
                comparison_id=before.comparison_id,
                restored_version=before.version,
            ),
        )

    find = partial(session.get_one, AliasChange)
    creating.once(session, "alias.rollback", [name, request.model_dump()], find=find, create=move)
    return get_alias(session, context.project_id, name)


def change_before(session: Session, alias: Alias) -> AliasChange | None:
    """Return the change that made the target that a rollback returns to, or None if there is none."""
    query = select(AliasChange).where(AliasChange.alias_id == alias.id)
    changes = {change.version: change for change in session.scalars(query)}

    def made(version: int) -> AliasChange | None:
        """Return what first made that version's target, through rollbacks; None if it was not there yet."""
        change = changes.get(version)
        if change is None or change.kind == "deleted":
            return None
        return change if change.restored_version is None else changes[change.restored_version]

    at = made(alias.version)
    while at is not None and at.split_after == alias.split:
        at = made(at.version - 1)
    return at


def delete_alias(session: Session, context: Context, name: str, version: int | None) -> Alias:
    """Delete the alias; its history stays, and its version goes on rising if it is created again.

    Raises:
        NotFoundError: no such alias.
        ConflictError: it has moved since that version.
    """
    alias = _lock_existing(session, context.project_id, name, version)
    point(session, context, name, alias, Move("deleted", []))
    alias.deleted_at = time.time()
    return alias


def delete_model(session: Session, context: Context, name: str) -> Adapter:
    """Delete a fine-tuned model or a checkpoint that no alias points to.

    Raises:
        NotFoundError: no such model.
        PermissionDeniedError: it is a base model.
        ConflictError: an alias points to it.
    """
    settings, project_id = context.settings, context.project_id
    if Catalogue.read_for(session, settings, name).find(name) is not None:
        return adapters_service.delete_adapter(session, settings, project_id, name)  # refuses it
    # Locked, so that an alias that is being pointed to it either is there by now or finds it deleted.
    this = select(Adapter.name).where(Adapter.name == name, Adapter.project_id == project_id)
    session.execute(this.with_for_update())
    query = select(Alias).where(Alias.project_id == project_id, Alias.deleted_at.is_(None))
    for alias in session.scalars(query.order_by(Alias.name)):
        if any(share["model"] == name for share in alias.split):
            raise ConflictError(
                f"The alias '{alias.name}' points to '{name}'; point it elsewhere first.",
                code="model_in_use",
                param="model",
            )
    return adapters_service.delete_adapter(session, settings, project_id, name)


def lock_alias(session: Session, context: Context, name: str, version: int | None) -> Alias | None:
    """Return the alias at that version, locked until the transaction ends; without a version there is none.

    Raises:
        InvalidRequestError: the name is a model's.
        ConflictError: it is at another version.
    """
    _refuse_models_name(session, context.settings, name)
    alias = _lock(session, context.project_id, name)
    known = alias.version if alias is not None and alias.deleted_at is None else None
    if version != known:
        raise _moved(name, known)
    return alias


def point(session: Session, context: Context, name: str, alias: Alias | None, move: Move) -> AliasChange:
    """Move an alias that the caller has locked, or create it; write that into its history, and tell webhooks.

    Raises:
        ConflictError: another request has just created it.
    """
    is_new = alias is None or alias.deleted_at is not None
    if alias is None:
        alias = _create(session, context.project_id, name)
    before = alias.split
    alias.split, alias.version, alias.updated_at = move.split, alias.version + 1, time.time()
    if is_new:
        alias.created_at, alias.deleted_at = alias.updated_at, None
    change = AliasChange(
        alias_id=alias.id,
        version=alias.version,
        kind="created" if is_new and move.kind == "set" else move.kind,
        key_id=context.caller.key_id if context.caller else None,
        reason=move.reason,
        comparison_id=move.comparison_id,
        rules=move.rules,
        split_before=before,
        split_after=move.split,
        restored_version=move.restored_version,
    )
    session.add(change)
    session.flush()
    moved = {"id": name, "version": change.version, "kind": change.kind}
    outbox.add_event(session, context.project_id, "alias.moved", moved)
    return change


def _find(session: Session, project_id: str, name: str) -> Alias | None:
    return session.scalar(
        select(Alias).where(Alias.project_id == project_id, Alias.name == name, Alias.deleted_at.is_(None))
    )


def _create(session: Session, project_id: str, name: str) -> Alias:
    alias = Alias(project_id=project_id, name=name, split=[], version=0)
    try:
        with session.begin_nested():
            session.add(alias)
    except IntegrityError as error:
        raise ConflictError(
            f"Another request has just created the alias '{name}'.",
            code="alias_version_conflict",
            param="version",
        ) from error
    return alias


def _lock(session: Session, project_id: str, name: str) -> Alias | None:
    """Return the alias, deleted or not; nobody else moves it before the transaction ends."""
    this = select(Alias).where(Alias.project_id == project_id, Alias.name == name)
    return session.scalar(this.with_for_update())


def _lock_existing(session: Session, project_id: str, name: str, version: int | None) -> Alias:
    """Lock the alias, which must be at that version if one is given."""
    alias = _lock(session, project_id, name)
    if alias is None or alias.deleted_at is not None:
        raise _not_found(name)
    if version not in (None, alias.version):
        raise _moved(name, alias.version)
    return alias


def _requested_split(session: Session, context: Context, request: PutAlias) -> list[Share]:
    if (request.model is None) == (request.split is None):
        raise InvalidRequestError(
            "Give 'model', or 'split' with several models and their weights: one of the two.",
            code="missing_required_parameter" if request.model is None else "invalid_value",
            param="model",
        )
    if request.model is not None:
        return _checked(session, context, [("model", {"model": request.model, "weight": 1.0})])
    shares = [
        (f"split[{position}].model", Share(model=share.model, weight=share.weight))
        for position, share in enumerate(request.split or ())
    ]
    return _checked(session, context, shares)


def _checked(session: Session, context: Context, shares: Iterable[tuple[str, Share]]) -> list[Share]:
    """Return the split with the models' own names; each can be served, and is not deleted meanwhile.

    Every share comes with the request's field that names it.
    """
    split: list[Share] = []
    for param, share in shares:
        name = find_model(session, context.settings, context.project_id, share["model"], param=param)
        if any(name == other["model"] for other in split):
            raise InvalidRequestError(
                f"'{name}' is in the split twice; give it one weight.", code="invalid_value", param=param
            )
        split.append({"model": name, "weight": share["weight"]})
    if len(split) == 1:
        split[0]["weight"] = 1.0
    return split


def _refuse_models_name(session: Session, settings: Settings, name: str) -> None:
    Catalogue.rely_on(session)  # so that no base model gets the name meanwhile
    if is_models_name(session, settings, name):
        raise InvalidRequestError(
            f"'{name}' is a model's name; an alias needs one of its own.",
            code="alias_shadows_model",
            param="name",
        )


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"No alias '{name[:255]}'.", code="alias_not_found", param="name")


def _moved(name: str, version: int | None) -> ConflictError:
    is_now = (
        f"The alias '{name}' is not there; leave 'version' out to create it."
        if version is None
        else f"The alias '{name}' is at version {version}; look at it again, and send that as 'version'."
    )
    return ConflictError(is_now, code="alias_version_conflict", param="version")

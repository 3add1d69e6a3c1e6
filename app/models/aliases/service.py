"""Rules on aliases: what one may be called and point to, who moved it, and how it goes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.auth.models import ApiKey
from app.core.errors import (
    ConflictError,
    FailedDependencyError,
    InvalidRequestError,
    NotFoundError,
    ToqueError,
)
from app.core.idempotency import CreationRequest
from app.core.pagination import fetch_page
from app.core.settings import Settings
from app.models.adapters import service as adapters_service
from app.models.adapters.models import Adapter
from app.models.adapters.parent import Parent
from app.models.aliases.models import Alias, AliasChange, ChangeKind, Share
from app.models.aliases.schemas import PutAlias, RollBackAlias
from app.models.aliases.target import Arm, Target
from app.storage.base import Storage

FindComparison = Callable[[Session, str, str], object]
"""A project's comparison, by both their ids.

Raises:
    NotFoundError: not there, or another project's.
"""
_FINE_TUNED = "ft:"
"""How every adapter's served name begins."""


def resolve(session: Session, settings: Settings, project_id: str, name: str) -> Target:
    """What a request's `model` leads to: a model, or what the project's alias of that name points to.

    A model of a split that cannot be served any more leaves its users to the others.

    Raises:
        NotFoundError: the project has neither a model nor an alias of that name.
        FailedDependencyError: the model, or every model of the alias, is quarantined.
    """
    alias = _find_named(session, settings, project_id, name)
    if alias is None:
        model = adapters_service.resolve_model(session, settings, project_id, name)
        return Target(name, (Arm(model, 1.0),), is_alias=False)
    arms: list[Arm] = []
    problems: list[ToqueError] = []
    for share in alias.split:
        try:
            model = adapters_service.resolve_model(session, settings, project_id, share["model"])
            arms.append(Arm(model, share["weight"]))
        except (FailedDependencyError, NotFoundError) as error:
            problems.append(error)
    if not arms:
        raise problems[0]
    return Target(name, tuple(arms))


def find_single(session: Session, settings: Settings, project_id: str, name: str) -> str:
    """The name of the one model that the project's alias of that name points to; any other name as it is.

    Raises:
        InvalidRequestError: the alias is split between models.
    """
    alias = _find_named(session, settings, project_id, name)
    if alias is None:
        return name
    first, *others = alias.split
    if others:
        raise InvalidRequestError(
            f"The alias '{name}' is split between models; name one of them.",
            code="alias_is_split",
            param="model",
        )
    return first["model"]


def find_model_to_train(
    settings: Settings, storage: Storage, session: Session, project_id: str, name: str
) -> Parent | str:
    """The project's model of that name or alias, for training to go on from; else the name of a base model.

    It is not deleted before the caller's transaction ends.

    Raises:
        InvalidRequestError: the alias is split between models.
        FailedDependencyError: the model is quarantined, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    model = find_single(session, settings, project_id, name)
    return adapters_service.find_parent(settings, storage, session, project_id, model) or model


def get_alias(session: Session, project_id: str, name: str) -> Alias:
    """The project's alias.

    Raises:
        NotFoundError: not there, or another project's.
    """
    alias = _find(session, project_id, name)
    if alias is None:
        raise _not_found(name)
    return alias


def find_alias(session: Session, settings: Settings, project_id: str, name: str) -> Alias | None:
    """The project's alias; None where there is none.

    Raises:
        InvalidRequestError: the name is a model's.
    """
    _refuse_models_name(settings, name)
    return _find(session, project_id, name)


def list_aliases(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Alias], bool]:
    """A page of the project's aliases, newest first, and whether more follow."""
    query = select(Alias).where(Alias.project_id == project_id, Alias.deleted_at.is_(None))
    key = (Alias.created_at, Alias.name)
    return fetch_page(session, query, key, identity=Alias.name, after=after, limit=limit)


def list_changes(
    session: Session, project_id: str, name: str, *, after: str | None, limit: int
) -> tuple[Sequence[tuple[AliasChange, ApiKey]], bool]:
    """A page of the alias's history, newest first, and whether more follows; it outlives the alias.

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
    settings: Settings,
    find_comparison: FindComparison,
    creating: CreationRequest,
    key: ApiKey,
    name: str,
    request: PutAlias,
) -> Alias:
    """Creates the alias or points it elsewhere.

    Raises:
        InvalidRequestError: the name is a model's, or the target is another alias.
        NotFoundError: the project has no such model, or no such comparison.
        FailedDependencyError: the model is quarantined.
        ConflictError: the alias is not at the version that the request replaces.
    """
    content = [name, request.model_dump()]
    if creating.find(session, "alias", content) is not None:
        return get_alias(session, key.project_id, name)
    split = _requested_split(session, settings, key.project_id, request)
    if request.comparison is not None:
        try:
            find_comparison(session, key.project_id, request.comparison)
        except NotFoundError as error:
            error.body.param = "comparison"
            raise
    alias = lock_alias(session, settings, key.project_id, name, request.version)
    change = point(
        session, key, name, alias, split, kind="set", reason=request.reason, comparison_id=request.comparison
    )
    creating.remember(session, "alias", content, change.id)
    return get_alias(session, key.project_id, name)


def roll_back(
    session: Session,
    settings: Settings,
    creating: CreationRequest,
    key: ApiKey,
    name: str,
    request: RollBackAlias,
) -> Alias:
    """Points the alias to where it pointed before; again, to where it pointed before that.

    A target that was rolled back from is never returned to.

    Raises:
        NotFoundError: no such alias, or the model before was deleted.
        FailedDependencyError: the model before is quarantined.
        ConflictError: the alias has moved since that version, or never pointed elsewhere.
    """
    content = [name, request.model_dump()]
    if creating.find(session, "alias.rollback", content) is not None:
        return get_alias(session, key.project_id, name)
    alias = _hold_existing(session, key.project_id, name, request.version)
    before = _change_before(session, alias)
    if before is None:
        raise ConflictError(
            f"The alias '{name}' has not pointed elsewhere before.", code="nothing_to_roll_back", param="name"
        )
    split = _checked(session, settings, key.project_id, [("name", share) for share in before.split_after])
    change = point(
        session,
        key,
        name,
        alias,
        split,
        kind="rolled_back",
        reason=request.reason,
        comparison_id=before.comparison_id,
        restored_version=before.version,
    )
    creating.remember(session, "alias.rollback", content, change.id)
    return alias


def delete_alias(session: Session, key: ApiKey, name: str, version: int | None) -> Alias:
    """Ends the alias; its history stays, and its version goes on rising should it be created again.

    Raises:
        NotFoundError: no such alias.
        ConflictError: it has moved since that version.
    """
    alias = _hold_existing(session, key.project_id, name, version)
    point(session, key, name, alias, [], kind="deleted")
    alias.deleted_at = time.time()
    return alias


def delete_model(session: Session, settings: Settings, project_id: str, name: str) -> Adapter:
    """Ends a fine-tuned model or a checkpoint that no alias points to.

    Raises:
        NotFoundError: no such model.
        PermissionDeniedError: it is a base model.
        ConflictError: an alias points to it.
    """
    if settings.base_model(name) is not None:
        return adapters_service.delete_adapter(session, settings, project_id, name)  # refuses it
    # Held, so that an alias that is being pointed to it either is there by now or finds it deleted.
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


def lock_alias(
    session: Session, settings: Settings, project_id: str, name: str, version: int | None
) -> Alias | None:
    """The alias at that version, held until the transaction ends; None where there is none, and no version.

    Raises:
        InvalidRequestError: the name is a model's.
        ConflictError: it is at another version.
    """
    _refuse_models_name(settings, name)
    alias = _hold(session, project_id, name)
    known = alias.version if alias is not None and alias.deleted_at is None else None
    if version != known:
        raise _moved(name, known)
    return alias


def point(
    session: Session,
    key: ApiKey,
    name: str,
    alias: Alias | None,
    split: list[Share],
    *,
    kind: ChangeKind,
    reason: str | None = None,
    comparison_id: str | None = None,
    rules: list[dict[str, Any]] | None = None,
    restored_version: int | None = None,
) -> AliasChange:
    """Moves an alias that the caller holds, or creates it, and writes that into its history.

    Raises:
        ConflictError: another request has just created it.
    """
    is_new = alias is None or alias.deleted_at is not None
    if alias is None:
        alias = _create(session, key.project_id, name)
    before = alias.split
    alias.split, alias.version, alias.updated_at = split, alias.version + 1, time.time()
    if is_new:
        alias.created_at, alias.deleted_at = alias.updated_at, None
    change = AliasChange(
        alias_id=alias.id,
        version=alias.version,
        kind="created" if is_new and kind == "set" else kind,
        key_id=key.id,
        reason=reason,
        comparison_id=comparison_id,
        rules=rules,
        split_before=before,
        split_after=split,
        restored_version=restored_version,
    )
    session.add(change)
    session.flush()
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


def _hold(session: Session, project_id: str, name: str) -> Alias | None:
    """The alias, deleted or not; nobody else moves it before the transaction ends."""
    this = select(Alias).where(Alias.project_id == project_id, Alias.name == name)
    return session.scalar(this.with_for_update())


def _hold_existing(session: Session, project_id: str, name: str, version: int | None) -> Alias:
    """The alias, at that version or at any."""
    alias = _hold(session, project_id, name)
    if alias is None or alias.deleted_at is not None:
        raise _not_found(name)
    if version not in (None, alias.version):
        raise _moved(name, alias.version)
    return alias


def _requested_split(session: Session, settings: Settings, project_id: str, request: PutAlias) -> list[Share]:
    if (request.model is None) == (request.split is None):
        raise InvalidRequestError(
            "Give 'model', or 'split' with several models and their weights: one of the two.",
            code="missing_required_parameter" if request.model is None else "invalid_value",
            param="model",
        )
    if request.model is not None:
        return _checked(session, settings, project_id, [("model", {"model": request.model, "weight": 1.0})])
    shares = [
        (f"split[{position}].model", Share(model=share.model, weight=share.weight))
        for position, share in enumerate(request.split or ())
    ]
    return _checked(session, settings, project_id, shares)


def _checked(
    session: Session, settings: Settings, project_id: str, shares: Iterable[tuple[str, Share]]
) -> list[Share]:
    """The split with the models' own names; each of them can be served, and is not deleted meanwhile."""
    split: list[Share] = []
    for param, share in shares:
        name = find_model(session, settings, project_id, share["model"], param=param)
        if any(name == other["model"] for other in split):
            raise InvalidRequestError(
                f"'{name}' is in the split twice; give it one weight.", code="invalid_value", param=param
            )
        split.append({"model": name, "weight": share["weight"]})
    if len(split) == 1:
        split[0]["weight"] = 1.0
    return split


def find_model(session: Session, settings: Settings, project_id: str, name: str, *, param: str) -> str:
    """The own name of a model that an alias may point to; it is not deleted before the transaction ends.

    Raises:
        InvalidRequestError: it is an alias.
        NotFoundError: the project has no such model.
        FailedDependencyError: it is quarantined.
    """
    if _find_named(session, settings, project_id, name) is not None:
        raise InvalidRequestError(
            f"'{name}' is an alias; an alias points to models, never to another alias.",
            code="alias_of_alias",
            param=param,
        )
    session.execute(select(Adapter.name).where(Adapter.name == name).with_for_update(read=True))
    try:
        return adapters_service.resolve_model(session, settings, project_id, name).name
    except (NotFoundError, FailedDependencyError) as error:
        error.body.param = param
        raise


def _change_before(session: Session, alias: Alias) -> AliasChange | None:
    """The change that made the target before the present one; None where there is none."""
    query = select(AliasChange).where(AliasChange.alias_id == alias.id)
    changes = {change.version: change for change in session.scalars(query)}

    def made(version: int) -> AliasChange | None:
        """What first made the target of that version, through rollbacks; None before the alias was there."""
        change = changes.get(version)
        if change is None or change.kind == "deleted":
            return None
        return change if change.restored_version is None else changes[change.restored_version]

    at = made(alias.version)
    while at is not None and at.split_after == alias.split:
        at = made(at.version - 1)
    return at


def _find_named(session: Session, settings: Settings, project_id: str, name: str) -> Alias | None:
    """The alias that a name means where a model is asked for; models come first."""
    return None if _is_models_name(settings, name) else _find(session, project_id, name)


def _is_models_name(settings: Settings, name: str) -> bool:
    """Whether it is, or may become, a model's: no alias has such a name, and models come first."""
    return name.startswith(_FINE_TUNED) or settings.base_model(name) is not None


def _refuse_models_name(settings: Settings, name: str) -> None:
    if _is_models_name(settings, name):
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

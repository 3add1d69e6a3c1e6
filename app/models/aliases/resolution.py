"""Resolution: which model the name in a request leads to, an alias or a model's own."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.context import Context
from app.core.errors import FailedDependencyError, InvalidRequestError, NotFoundError, ToqueError
from app.core.settings import Settings
from app.models.adapters import served_models
from app.models.adapters.files import find_parent
from app.models.adapters.models import Adapter
from app.models.adapters.parent import Parent
from app.models.aliases.models import Alias
from app.models.aliases.target import Target, WeightedModel
from app.models.catalogue import Catalogue

_FINE_TUNED = "ft:"
"""Every adapter's served name begins with this."""


def resolve(session: Session, settings: Settings, project_id: str, name: str) -> Target:
    """Return the model of that name, or the models that the project's alias of that name points to.

    A model of a split that cannot be served any more leaves its users to the others.

    Raises:
        NotFoundError: the project has neither a model nor an alias of that name.
        FailedDependencyError: the model, or every model of the alias, is quarantined.
    """
    alias = find_named(session, settings, project_id, name)
    if alias is None:
        model = served_models.resolve_model(session, settings, project_id, name)
        return Target(name, (WeightedModel(model, 1.0),), is_alias=False)
    models: list[WeightedModel] = []
    problems: list[ToqueError] = []
    for share in alias.split:
        try:
            model = served_models.resolve_model(session, settings, project_id, share["model"])
            models.append(WeightedModel(model, share["weight"]))
        except (FailedDependencyError, NotFoundError) as error:
            problems.append(error)
    if not models:
        raise problems[0]
    return Target(name, tuple(models))


def find_single(session: Session, settings: Settings, project_id: str, name: str) -> str:
    """Return the name of the one model that the project's alias points to; any other name is returned as is.

    Raises:
        InvalidRequestError: the alias is split between models.
    """
    alias = find_named(session, settings, project_id, name)
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


def find_model_to_train(session: Session, context: Context, name: str) -> Parent | str:
    """Return the project's fine-tuned model of that name or alias, or else the name of a base model.

    Raises:
        InvalidRequestError: the alias is split between models.
        FailedDependencyError: the model is quarantined, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    model = find_single(session, context.settings, context.project_id, name)
    return find_parent(session, context, model) or model


def find_model(session: Session, settings: Settings, project_id: str, name: str, *, param: str) -> str:
    """Return the own name of a model that an alias may point to.

    The model is neither deleted nor removed before the caller's transaction ends.

    Raises:
        InvalidRequestError: it is an alias.
        NotFoundError: the project has no such model.
        FailedDependencyError: it is quarantined.
    """
    if find_named(session, settings, project_id, name) is not None:
        raise InvalidRequestError(
            f"'{name}' is an alias; an alias points to models, never to another alias.",
            code="alias_of_alias",
            param=param,
        )
    session.execute(select(Adapter.name).where(Adapter.name == name).with_for_update(read=True))
    Catalogue.rely_on(session)
    try:
        return served_models.resolve_model(session, settings, project_id, name).name
    except (NotFoundError, FailedDependencyError) as error:
        error.body.param = param
        raise


def find_named(session: Session, settings: Settings, project_id: str, name: str) -> Alias | None:
    """Return the project's alias of that name, or None if it is a model's name or nobody's."""
    if is_models_name(session, settings, name):
        return None
    return session.scalar(
        select(Alias).where(Alias.project_id == project_id, Alias.name == name, Alias.deleted_at.is_(None))
    )


def is_models_name(session: Session, settings: Settings, name: str) -> bool:
    """Whether the name is, or may become, a model's: no alias may have it, and models are looked up first."""
    return name.startswith(_FINE_TUNED) or (
        Catalogue.read_for(session, settings, name).find(name) is not None
    )

"""Base models in the catalogue: adding them, and taking them out."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.errors import ConflictError
from app.core.settings import BaseModelEntry, Settings
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob
from app.models.adapters.models import Adapter
from app.models.aliases.models import Alias
from app.models.catalogue import Catalogue
from app.models.catalogue.models import BaseModelRow, StoredBaseModel


def require_free_names(session: Session, settings: Settings, entry: BaseModelEntry) -> None:
    """Check that nothing else has a name of this base model.

    Raises:
        ConflictError: another base model or an alias has it.
    """
    catalogue = Catalogue.read_to_change(session, settings)
    for name in (entry.name, *entry.also_known_as):
        if catalogue.find(name) is not None:
            raise ConflictError(
                f"The catalogue has a base model '{name}' already; `toque models remove {name}` takes it "
                "out, and --name gives this one another name.",
                code="base_model_exists",
                param="name",
            )
        alias = select(Alias.id).where(Alias.name == name, Alias.deleted_at.is_(None)).limit(1)
        if session.scalar(alias) is not None:
            raise ConflictError(
                f"An alias is called '{name}', and would be hidden by a base model of that name; choose "
                "another.",
                code="alias_exists",
                param="name",
            )


def add_base_model(session: Session, settings: Settings, entry: BaseModelEntry) -> None:
    """Put a base model into the catalogue; every process knows it from now on.

    Raises:
        ConflictError: another base model or an alias has one of its names.
    """
    require_free_names(session, settings, entry)
    session.add(BaseModelRow(name=entry.name, entry=entry.model_dump(mode="json")))


def remove_base_model(session: Session, settings: Settings, name: str) -> BaseModelEntry:
    """Take a base model that was added out of the catalogue; its files on this machine stay.

    Raises:
        NotFoundError: the catalogue has no such base model.
        ConflictError: it is an entry of the settings, or the engine, an alias, a model or a job needs it.
    """
    entry = Catalogue.read_to_change(session, settings).get(name)
    row = session.get(BaseModelRow, entry.name)
    if row is None or entry in settings.base_models:
        raise ConflictError(
            f"'{entry.name}' is an entry of TOQUE_BASE_MODELS; take it out there, and start all processes "
            "again.",
            code="base_model_in_settings",
            param="name",
        )
    served = Adapter.base_model == entry.name, Adapter.deleted_at.is_(None)
    unfinished = FineTuningJob.model == entry.name, FineTuningJob.status.not_in(FINAL_STATUSES)
    adapters = session.scalar(select(func.count()).select_from(Adapter).where(*served)) or 0
    jobs = session.scalar(select(func.count()).select_from(FineTuningJob).where(*unfinished)) or 0
    if adapters or jobs:
        raise ConflictError(
            f"'{entry.name}' is needed by {adapters:,} fine-tuned models and checkpoints and by {jobs:,} "
            "unfinished jobs; delete and cancel them first.",
            code="base_model_in_use",
            param="name",
        )
    _refuse_pointed_to(session, settings, entry)
    session.delete(row)
    if (stored := session.get(StoredBaseModel, entry.name)) is not None:
        session.delete(stored)  # what it names is removed like every orphan
    return entry


def _refuse_pointed_to(session: Session, settings: Settings, entry: BaseModelEntry) -> None:
    """Check that neither the settings nor an alias name this base model.

    Raises:
        ConflictError: one of them does.
    """
    if settings.engine_base_model in (entry.name, *entry.also_known_as):
        raise ConflictError(
            f"TOQUE_ENGINE_BASE_MODEL names '{entry.name}'; change it there, and start all processes again.",
            code="base_model_in_use",
            param="name",
        )
    aliases = session.scalars(select(Alias).where(Alias.deleted_at.is_(None)).order_by(Alias.name))
    if names := [alias.name for alias in aliases if _points_to(alias, entry.name)]:
        raise ConflictError(
            f"Aliases point to '{entry.name}': {', '.join(names)}; point them elsewhere first.",
            code="base_model_in_use",
            param="name",
        )


def _points_to(alias: Alias, model: str) -> bool:
    return any(share["model"] == model for share in alias.split)

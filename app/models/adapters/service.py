"""Adapters: finding, quarantining and deleting them, and what is recorded of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Update, func, literal, select, update
from sqlalchemy.orm import Session, aliased

from app.auth.models import Project
from app.context import Context
from app.core.errors import FailedDependencyError, NotFoundError, PermissionDeniedError
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from app.models.catalogue import Catalogue
from app.webhooks import outbox


def served_name(session: Session, project_id: str, base: str, suffix: str | None, adapter_id: str) -> str:
    """Return `ft:<base>:<project>:<suffix>:<id>`, which is never given twice because the id is not."""
    project = session.get_one(Project, project_id)
    return f"ft:{base}:{project.name}:{suffix or ''}:{adapter_id}"


def lock_adapter(session: Session, context: Context, name: str) -> None:
    """Keep the project's adapter from being deleted or quarantined before the transaction ends.

    Raises:
        NotFoundError: it has been deleted.
        FailedDependencyError: it has been quarantined.
    """
    this = select(Adapter).where(
        Adapter.name == name, Adapter.project_id == context.project_id, Adapter.deleted_at.is_(None)
    )
    adapter = session.scalar(this.with_for_update(read=True))
    if adapter is None:
        # Raises, since an adapter's name is no base model's.
        Catalogue.read(session, context.settings).get(name)
    else:
        refuse_quarantined(adapter, "model")


def lineage(session: Session, adapter: Adapter) -> list[str]:
    """Return the base model, then every adapter that training continued from, up to this one."""
    line = (
        select(Adapter.name, Adapter.parent, literal(0).label("generations"))
        .where(Adapter.name == adapter.name)
        .cte(recursive=True)
    )
    ancestor = aliased(Adapter)
    line = line.union_all(
        select(ancestor.name, ancestor.parent, line.c.generations + 1).where(ancestor.name == line.c.parent)
    )
    names = session.scalars(select(line.c.name).order_by(line.c.generations.desc()))
    return [adapter.base_model, *names]


def quarantine(session: Session, name: str, reason: str) -> bool:
    """Stop the adapter from being served. The first reason stands: returns whether it is this one."""
    this = update(Adapter).where(Adapter.name == name, Adapter.quarantine_reason.is_(None))
    is_new = _has_changed(session, this.values(quarantine_reason=reason[:1024]))
    if is_new:
        _announce_quarantine(session, name, reason[:1024])
    return is_new


def _announce_quarantine(session: Session, name: str, reason: str) -> None:
    project = select(Adapter.project_id).where(Adapter.name == name).scalar_subquery()
    outbox.add_event(session, project, "model.quarantined", {"id": name, "reason": reason})


def record_check(session: Session, name: str, problem: str | None) -> Adapter:
    """Quarantine an adapter whose files have a problem, or lift its quarantine if they have none.

    Raises:
        NotFoundError: it has been deleted.
    """
    found = session.get(Adapter, name, with_for_update=True)
    if found is None or found.deleted_at is not None:
        raise _no_adapter(name)
    if problem is None and found.quarantine_reason is not None:
        found.parity = found.probed_at = None  # they may have been measured on other files
    if problem is not None and found.quarantine_reason is None:
        _announce_quarantine(session, name, problem)
    found.quarantine_reason = problem
    return found


def find_unprobed(session: Session, base_model: str) -> str | None:
    """Return the name of an adapter of this base that was imported and has yet to answer, or None.

    One at random, so that one that cannot be probed does not hold up the others.
    """
    unprobed = (
        select(Adapter.name)
        .where(
            Adapter.base_model == base_model,
            Adapter.job_id.is_(None),
            Adapter.probed_at.is_(None),
            Adapter.quarantine_reason.is_(None),
            Adapter.deleted_at.is_(None),
        )
        .order_by(func.random())
        .limit(1)
    )
    return session.scalar(unprobed)


def record_probe(session: Session, name: str) -> None:
    """Record that an engine has answered with an imported adapter as it should."""
    session.execute(update(Adapter).where(Adapter.name == name).values(probed_at=time.time()))


def record_parity(session: Session, name: str, parity: dict[str, Any]) -> bool:
    """Record how close an engine came to the trainer. Returns False if that was recorded before."""
    this = update(Adapter).where(Adapter.name == name, Adapter.parity.is_(None))
    return _has_changed(session, this.values(parity=parity))


def get_adapter(session: Session, settings: Settings, project_id: str, name: str) -> Adapter | None:
    """Return the project's adapter of that name, or None if the name is a base model's.

    Raises:
        NotFoundError: there is neither.
    """
    adapter = find_adapter(session, project_id, name)
    if adapter is None:
        Catalogue.read_for(session, settings, name).get(name)
    return adapter


def list_adapters(session: Session, project_id: str, *, limit: int | None = None) -> Sequence[Adapter]:
    """Return the project's adapters and checkpoints, newest first: all, or at most `limit` of them."""
    query = select(Adapter).where(Adapter.project_id == project_id, Adapter.deleted_at.is_(None))
    newest_first = query.order_by(Adapter.created_at.desc(), Adapter.name.desc())
    return session.scalars(newest_first.limit(limit)).all()


def list_job_adapters(session: Session, project_id: str, job_id: str) -> Sequence[Adapter]:
    """Return what a job has published and is served: its checkpoints and, once it has ended, its model."""
    query = select(Adapter).where(
        Adapter.job_id == job_id,
        Adapter.project_id == project_id,
        Adapter.deleted_at.is_(None),
        Adapter.quarantine_reason.is_(None),
    )
    return session.scalars(query).all()


def delete_adapter(session: Session, settings: Settings, project_id: str, name: str) -> Adapter:
    """Delete a model: it is not found any more, and its name is never given to another.

    Raises:
        NotFoundError: the project has no such model.
        PermissionDeniedError: it is a base model.
    """
    adapter = get_adapter(session, settings, project_id, name)
    if adapter is None:
        raise PermissionDeniedError(
            f"'{name}' is a base model; `toque models remove` takes one out of the catalogue.",
            code="base_model_not_deletable",
            param="model",
        )
    adapter.deleted_at = time.time()
    return adapter


def find_servable(session: Session, base_model: str, name: str) -> Adapter | None:
    """Return the adapter, of any project, that an engine of that base is asked for by its served name."""
    query = select(Adapter).where(
        Adapter.name == name, Adapter.base_model == base_model, Adapter.deleted_at.is_(None)
    )
    return session.scalar(query)


def keys_since(session: Session, base_model: str, since: float) -> Sequence[str]:
    """Return the storage's keys of the base's models, of all projects, that were published after `since`."""
    query = select(Adapter.storage_key).where(
        Adapter.base_model == base_model,
        Adapter.created_at > since,
        Adapter.deleted_at.is_(None),
        Adapter.quarantine_reason.is_(None),
    )
    return session.scalars(query.distinct()).all()


def find_adapter(session: Session, project_id: str, name: str) -> Adapter | None:
    """Return the project's adapter of that name, or None if it has none."""
    query = select(Adapter).where(
        Adapter.name == name, Adapter.project_id == project_id, Adapter.deleted_at.is_(None)
    )
    return session.scalar(query)


def require_adapter(session: Session, project_id: str, name: str) -> Adapter:
    """Return the project's adapter of that name.

    Raises:
        NotFoundError: it has none.
    """
    adapter = find_adapter(session, project_id, name)
    if adapter is None:
        raise _no_adapter(name)
    return adapter


def _no_adapter(name: str) -> NotFoundError:
    return NotFoundError(f"No adapter '{name[:255]}'.", code="model_not_found", param="name")


def _has_changed(session: Session, change: Update) -> bool:
    session.flush()  # the row may be new
    return session.connection().execute(change).rowcount == 1


def refuse_quarantined(adapter: Adapter, param: str) -> None:
    """Make sure that an adapter is served.

    Raises:
        FailedDependencyError: it is quarantined.
    """
    if adapter.quarantine_reason is not None:
        raise FailedDependencyError(
            f"The model '{adapter.name}' is quarantined: {adapter.quarantine_reason}. "
            "Train or import it again, or have it checked again once it is mended (toque adapters check).",
            code="model_quarantined",
            param=param,
        )

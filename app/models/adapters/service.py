"""Rules on models: how an adapter gets its name, is found by it, is set aside when it is bad, and ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Update, literal, select, update
from sqlalchemy.orm import Session, aliased

from app.auth.models import Project
from app.core.database import new_id
from app.core.errors import (
    FailedDependencyError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from app.core.idempotency import CreationRequest
from app.core.settings import Settings
from app.models.adapters.archive import AdapterArchive
from app.models.adapters.models import Adapter
from app.models.adapters.parent import Parent
from app.models.adapters.schemas import ImportAdapter
from app.models.adapters.validation import (
    CONFIG,
    WEIGHTS,
    AdapterError,
    LoraWeights,
    Shapes,
    check_adapter,
    describe_adapter,
    module_shapes,
)
from app.models.catalogue import find_base_model, is_prepared
from app.storage.base import Storage
from app.storage.incoming import IncomingFolder


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked: its served name, and the base whose engine holds it."""

    name: str
    base_model: str
    is_base: bool


def served_name(session: Session, project_id: str, base: str, suffix: str | None, adapter_id: str) -> str:
    """`ft:<base>:<project>:<suffix>:<id>`, unique for ever because the id is."""
    project = session.get_one(Project, project_id)
    return f"ft:{base}:{project.name}:{suffix or ''}:{adapter_id}"


def import_adapter(
    session: Session,
    settings: Settings,
    storage: Storage,
    creating: CreationRequest,
    *,
    incoming: IncomingFolder,
    request: ImportAdapter,
) -> Adapter:
    """Publishes an adapter that was trained elsewhere: its weights as they are, its config written anew.

    Where the base model is not on this machine, an engine compares the two before it loads the adapter.

    Raises:
        NotFoundError: the catalogue has no such base model, or the idempotency key stands for an adapter
            that was deleted.
        InvalidRequestError: the adapter cannot be served; nothing is kept.
    """
    base = find_base_model(settings, request.base_model, param="base_model")
    given = [incoming.file_sha256(name) for name in (CONFIG, WEIGHTS)]
    # What takes long comes before the first look at the database: a transaction may hold up others.
    try:
        lora = check_adapter(incoming.finish(), _known_shapes(settings, base.name), base.max_rank)
    except AdapterError as error:
        raise InvalidRequestError(
            f"The adapter cannot be served: {error}.", code=error.code, param=error.file
        ) from error
    content = [given, request.model_dump()]
    if (known := creating.find(session, "adapter", content)) is not None:
        adapter = _find_imported(session, creating.project_id, known)
        if adapter is not None:
            return adapter
        if creating.idempotency_key is not None:
            raise NotFoundError("The adapter that this Idempotency-Key stands for was deleted.")
    adapter_id, suffix = new_id(""), request.suffix.replace(" ", "-") if request.suffix else None
    incoming.file(CONFIG).write(lora.config(base.name))
    storage.publish_folder(incoming, f"adapters/{adapter_id}")
    adapter = Adapter(
        name=served_name(session, creating.project_id, base.name, suffix, adapter_id),
        project_id=creating.project_id,
        base_model=base.name,
        storage_key=f"adapters/{adapter_id}",
    )
    session.add(adapter)
    session.flush()
    creating.remember(session, "adapter", content, adapter_id)
    return adapter


def archive_adapter(
    session: Session, settings: Settings, storage: Storage, project_id: str, name: str
) -> AdapterArchive:
    """The project's adapter, to be taken elsewhere.

    Raises:
        NotFoundError: no such adapter.
        FailedDependencyError: it is quarantined, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    adapter = _existing(session, project_id, name)
    lora = _describe(settings, storage, adapter, "name")
    weights = storage.path(adapter.storage_key) / WEIGHTS
    try:
        return AdapterArchive(lora.config(adapter.base_model), weights, adapter.created_at)
    except OSError as error:
        raise _unreadable(name, error) from error


def find_parent(
    settings: Settings, storage: Storage, session: Session, project_id: str, name: str
) -> Parent | None:
    """The project's adapter of that name, for training to go on from; None where it has none.

    It is not deleted before the caller's transaction ends.

    Raises:
        FailedDependencyError: it is quarantined, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    adapter = _find_adapter(session, project_id, name)
    if adapter is None:
        return None
    session.refresh(adapter, with_for_update={"read": True})
    if adapter.deleted_at is not None:
        return None
    lora = _describe(settings, storage, adapter, "model")
    return Parent(adapter.name, adapter.base_model, lora.rank, lora.alpha)


def lineage(session: Session, adapter: Adapter) -> list[str]:
    """The base model, then every adapter that training went on from, up to this one."""
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
    """Has no engine asked for the adapter any more; the first reason stands. Returns whether this is it."""
    this = update(Adapter).where(Adapter.name == name, Adapter.quarantine_reason.is_(None))
    return _has_changed(session, this.values(quarantine_reason=reason[:1024]))


def record_parity(session: Session, name: str, parity: dict[str, Any]) -> bool:
    """Notes how near an engine came to the trainer; returns False where it was noted before."""
    this = update(Adapter).where(Adapter.name == name, Adapter.parity.is_(None))
    return _has_changed(session, this.values(parity=parity))


def check_again(
    reading: Session, writing: Session, settings: Settings, project_id: str, name: str
) -> Adapter:
    """Reads all of an adapter anew: quarantines it if it cannot be served, else lifts its quarantine.

    What only an engine can find out (its answers, its own loader) is found out again: by a worker, and on
    the first request. The files are read between two transactions, so that neither is held open.

    Raises:
        NotFoundError: no such adapter, or its base has left the catalogue.
        UnavailableError: the storage cannot be read now; nothing is changed.
    """
    adapter = _existing(reading, project_id, name)
    base = find_base_model(settings, adapter.base_model)
    reading.close()
    problem: str | None = None
    try:
        check_files(
            settings.storage_root, adapter.storage_key, _known_shapes(settings, base.name), base.max_rank
        )
    except AdapterError as error:
        problem = error.message
    except OSError as error:
        raise _unreadable(name, error) from error
    found = writing.get(Adapter, adapter.name, with_for_update=True)
    if found is None or found.deleted_at is not None:
        raise _no_adapter(name)
    if problem is None and found.quarantine_reason is not None:
        found.parity = None  # of files that were others, perhaps
    found.quarantine_reason = problem
    return found


def check_files(root: Path, storage_key: str, base: Shapes | None, max_rank: int | None) -> Path:
    """The folder of a published adapter, if it can be served.

    Raises:
        AdapterError, OSError: as `check_adapter`.
    """
    root = root.resolve()
    folder = root / storage_key
    if not folder.parent.resolve().is_relative_to(root):
        raise AdapterError(WEIGHTS, "unsafe_files", "its folder is outside the storage")
    check_adapter(folder, base, max_rank)
    return folder


def resolve_model(session: Session, settings: Settings, project_id: str, name: str) -> ServedModel:
    """What a request's `model` stands for.

    Raises:
        NotFoundError: no base model, adapter or checkpoint of this project has that name.
        FailedDependencyError: the adapter is quarantined.
    """
    adapter = _find_adapter(session, project_id, name)
    if adapter is not None:
        _refuse_quarantined(adapter, "model")
        return ServedModel(adapter.name, adapter.base_model, is_base=False)
    base = find_base_model(settings, name)
    return ServedModel(base.name, base.name, is_base=True)


def get_adapter(session: Session, settings: Settings, project_id: str, name: str) -> Adapter | None:
    """The project's adapter of that name; None where the name is a base model's.

    Raises:
        NotFoundError: it is neither.
    """
    adapter = _find_adapter(session, project_id, name)
    if adapter is None:
        find_base_model(settings, name)
    return adapter


def list_adapters(session: Session, project_id: str) -> Sequence[Adapter]:
    """The project's adapters and checkpoints, newest first."""
    query = select(Adapter).where(Adapter.project_id == project_id, Adapter.deleted_at.is_(None))
    return session.scalars(query.order_by(Adapter.created_at.desc(), Adapter.name.desc())).all()


def list_job_adapters(session: Session, project_id: str, job_id: str) -> Sequence[Adapter]:
    """What a job has published and can be asked: its checkpoints and, where it has ended, its model."""
    query = select(Adapter).where(
        Adapter.job_id == job_id,
        Adapter.project_id == project_id,
        Adapter.deleted_at.is_(None),
        Adapter.quarantine_reason.is_(None),
    )
    return session.scalars(query).all()


def delete_adapter(session: Session, settings: Settings, project_id: str, name: str) -> Adapter:
    """Ends a model: it is found no more, and its name is never given to another.

    Raises:
        NotFoundError: no such model.
        PermissionDeniedError: it is a base model.
    """
    adapter = get_adapter(session, settings, project_id, name)
    if adapter is None:
        raise PermissionDeniedError(
            f"'{name}' is a base model; the catalogue (TOQUE_BASE_MODELS) says which there are.",
            code="base_model_not_deletable",
            param="model",
        )
    adapter.deleted_at = time.time()
    return adapter


def find_servable(session: Session, base_model: str, name: str) -> Adapter | None:
    """The adapter that an engine of that base is asked for by its served name, of any project."""
    query = select(Adapter).where(
        Adapter.name == name, Adapter.base_model == base_model, Adapter.deleted_at.is_(None)
    )
    return session.scalar(query)


def _find_adapter(session: Session, project_id: str, name: str) -> Adapter | None:
    query = select(Adapter).where(
        Adapter.name == name, Adapter.project_id == project_id, Adapter.deleted_at.is_(None)
    )
    return session.scalar(query)


def _existing(session: Session, project_id: str, name: str) -> Adapter:
    adapter = _find_adapter(session, project_id, name)
    if adapter is None:
        raise _no_adapter(name)
    return adapter


def _no_adapter(name: str) -> NotFoundError:
    return NotFoundError(f"No adapter '{name[:255]}'.", code="model_not_found", param="name")


def _unreadable(name: str, error: OSError) -> UnavailableError:
    problem = f"The files of '{name}' cannot be read now ({error.strerror})."
    return UnavailableError(problem, code="storage_unavailable")


def _has_changed(session: Session, change: Update) -> bool:
    session.flush()  # the row may be new
    return session.connection().execute(change).rowcount == 1


def _known_shapes(settings: Settings, base_model: str) -> Shapes | None:
    """Those of the base; None where it is not prepared on this machine."""
    entry = settings.base_model(base_model)
    if entry is None or not is_prepared(settings, entry):
        return None
    return module_shapes(settings.base_model_dir(entry))


def _describe(settings: Settings, storage: Storage, adapter: Adapter, param: str) -> LoraWeights:
    """What is known of an adapter that is not quarantined.

    Raises:
        FailedDependencyError: it is, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    _refuse_quarantined(adapter, param)
    try:
        return describe_adapter(
            storage.path(adapter.storage_key), _known_shapes(settings, adapter.base_model)
        )
    except AdapterError as error:
        raise FailedDependencyError(
            f"The model '{adapter.name}' is damaged: {error}.", code="model_damaged", param=param
        ) from error
    except OSError as error:
        raise _unreadable(adapter.name, error) from error


def _find_imported(session: Session, project_id: str, adapter_id: str) -> Adapter | None:
    query = select(Adapter).where(
        Adapter.project_id == project_id,
        Adapter.storage_key == f"adapters/{adapter_id}",
        Adapter.deleted_at.is_(None),
    )
    return session.scalar(query)


def _refuse_quarantined(adapter: Adapter, param: str) -> None:
    if adapter.quarantine_reason is not None:
        raise FailedDependencyError(
            f"The model '{adapter.name}' is quarantined: {adapter.quarantine_reason}. "
            "Train or import it again, or have it checked again once it is mended (toque adapters check).",
            code="model_quarantined",
            param=param,
        )

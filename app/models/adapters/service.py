"""Adapters: importing, finding, checking, quarantining and deleting them."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Update, func, literal, select, update
from sqlalchemy.orm import Session, aliased

from app.auth.models import Project
from app.context import Context
from app.core.database import Database, new_id
from app.core.errors import (
    FailedDependencyError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from app.core.idempotency import IdempotentRequest
from app.core.settings import Settings
from app.models.adapters.archive import AdapterArchive
from app.models.adapters.base_shapes import known_shapes
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
)
from app.models.catalogue import Catalogue
from app.quotas.stored_bytes import require_bytes
from app.storage.base import DamagedContentError, Storage
from app.storage.incoming import IncomingFolder
from app.webhooks import outbox

log = logging.getLogger("toque.models")


def served_name(session: Session, project_id: str, base: str, suffix: str | None, adapter_id: str) -> str:
    """Return `ft:<base>:<project>:<suffix>:<id>`, which is never given twice because the id is not."""
    project = session.get_one(Project, project_id)
    return f"ft:{base}:{project.name}:{suffix or ''}:{adapter_id}"


def import_adapter(
    database: Database,
    context: Context,
    creating: IdempotentRequest,
    incoming: IncomingFolder,
    request: ImportAdapter,
) -> Adapter:
    """Publish an adapter that was trained elsewhere: its weights as they are, its config written anew.

    Where the base model is not on this machine, an engine compares the two before it loads the adapter.

    Raises:
        NotFoundError: the catalogue has no such base model, or the idempotency key stands for an adapter
            that was deleted.
        InvalidRequestError: the adapter cannot be served; nothing is kept.
        QuotaExceededError: the project stores too much.
    """
    with database.reader() as session:
        base = Catalogue.read(session, context.settings).get(request.base_model, param="base_model")
    given = [incoming.file_sha256(name) for name in (CONFIG, WEIGHTS)]
    try:
        lora = check_adapter(incoming.finish(), known_shapes(context.settings, base), base.max_rank)
    except AdapterError as error:
        raise InvalidRequestError(
            f"The adapter cannot be served: {error}.", code=error.code, param=error.file
        ) from error
    incoming.file(CONFIG).write(lora.config(base.name))
    with database.writer() as session:
        return creating.once(
            session,
            "adapter",
            [given, request.model_dump()],
            find=partial(_find_imported, session, context.project_id),
            create=partial(_keep_imported, session, context, incoming, base.name, request.suffix),
        )


def _keep_imported(
    session: Session, context: Context, incoming: IncomingFolder, base: str, suffix: str | None
) -> Adapter:
    Catalogue.read_to_rely_on(session, context.settings).get(base)  # it may have been removed meanwhile
    size = sum(path.stat().st_size for path in incoming.finish().iterdir())
    require_bytes(session, context.project_id, size, "adapter_model.safetensors")
    adapter_id = new_id("")
    storage_key = f"adapters/{adapter_id}"
    context.storage.publish_folder(incoming.complete(), storage_key)
    plain_suffix = suffix.replace(" ", "-") if suffix else None
    adapter = Adapter(
        name=served_name(session, context.project_id, base, plain_suffix, adapter_id),
        project_id=context.project_id,
        base_model=base,
        storage_key=storage_key,
        bytes=size,
    )
    session.add(adapter)
    session.flush()
    return adapter


def measure(database: Database, storage: Storage) -> None:
    """Record the size of adapters that are older than the column for it.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is away.
    """
    unmeasured = select(Adapter.name, Adapter.storage_key).where(
        Adapter.bytes.is_(None), Adapter.deleted_at.is_(None)
    )
    with database.reader() as session:
        keys = session.execute(unmeasured.limit(1000)).all()
    for name, key in keys:
        try:
            size = storage.size(key)
        except OSError as error:  # it is tried again the next time
            log.warning("%s cannot be measured now: %s", name, error)
            continue
        with database.writer() as session:
            session.execute(update(Adapter).where(Adapter.name == name).values(bytes=size))


def archive_adapter(session: Session, context: Context, name: str) -> AdapterArchive:
    """Return the project's adapter as an archive to download.

    Raises:
        NotFoundError: the project has no such adapter.
        FailedDependencyError: it is quarantined, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    adapter = _existing(session, context.project_id, name)
    lora = _describe(session, context, adapter, "name")
    weights = partial(context.storage.local, adapter.storage_key)
    try:
        return AdapterArchive(lora.config(adapter.base_model), weights, adapter.created_at)
    except OSError as error:
        raise _unreadable(name, error) from error


def find_parent(session: Session, context: Context, name: str) -> Parent | None:
    """Return the project's adapter of that name for training to continue from, or None if it has none.

    Raises:
        FailedDependencyError: it is quarantined, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    adapter = find_adapter(session, context.project_id, name)
    if adapter is None:
        return None
    lora = _describe(session, context, adapter, "model")
    return Parent(adapter.name, adapter.base_model, lora.rank, lora.alpha, lora.modules)


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


def check_again(database: Database, context: Context, name: str) -> Adapter:
    """Read all of an adapter again: quarantine it if it cannot be served, else lift its quarantine.

    What only an engine can find out (its answers, its own loader) is found out again by a worker, and by the
    first request. The files are read between two transactions, so that neither is held open.

    Raises:
        NotFoundError: the project has no such adapter, or its base has left the catalogue.
        UnavailableError: the storage cannot be read now; nothing is changed.
    """
    settings = context.settings
    with database.reader() as session:
        adapter = _existing(session, context.project_id, name)
        base = Catalogue.read(session, settings).get(adapter.base_model)
    problem: str | None = None
    try:
        check_adapter_files(context.storage, adapter.storage_key, known_shapes(settings, base), base.max_rank)
    except AdapterError as error:
        problem = error.message
    except OSError as error:
        raise _unreadable(name, error) from error
    with database.writer() as session:
        found = session.get(Adapter, adapter.name, with_for_update=True)
        if found is None or found.deleted_at is not None:
            raise _no_adapter(name)
        if problem is None and found.quarantine_reason is not None:
            found.parity = found.probed_at = None  # they may have been measured on other files
        if problem is not None and found.quarantine_reason is None:
            _announce_quarantine(session, name, problem)
        found.quarantine_reason = problem
    return found


def check_adapter_files(
    storage: Storage, storage_key: str, base: Shapes | None, max_rank: int | None
) -> Path:
    """Return the folder of a published adapter after checking that it can be served.

    It may be a copy on this machine, which stays for a while (`app.storage.cache.KEPT_SECONDS`).

    Raises:
        AdapterError, OSError: as `check_adapter`.
    """
    with adapter_folder(storage, storage_key) as folder:
        check_adapter(folder, base, max_rank)
    return folder


@contextmanager
def adapter_folder(storage: Storage, storage_key: str) -> Generator[Path]:
    """Have the folder of a published adapter on this machine until the block ends.

    Raises:
        AdapterError: it is outside the storage, or damaged in the storage.
        OSError: it cannot be read now: it is not there, or the storage is not.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(storage.local(storage_key))
        except ValueError:
            raise AdapterError(WEIGHTS, "unsafe_files", "its folder is outside the storage") from None
        except DamagedContentError as error:
            raise AdapterError(
                WEIGHTS, "checksum_mismatch", f"it is not as it was written: {error}"
            ) from None
        yield folder


def get_adapter(session: Session, settings: Settings, project_id: str, name: str) -> Adapter | None:
    """Return the project's adapter of that name, or None if the name is a base model's.

    Raises:
        NotFoundError: there is neither.
    """
    adapter = find_adapter(session, project_id, name)
    if adapter is None:
        Catalogue.read_for(session, settings, name).get(name)
    return adapter


def list_adapters(session: Session, project_id: str) -> Sequence[Adapter]:
    """Return the project's adapters and checkpoints, newest first."""
    query = select(Adapter).where(Adapter.project_id == project_id, Adapter.deleted_at.is_(None))
    return session.scalars(query.order_by(Adapter.created_at.desc(), Adapter.name.desc())).all()


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


def _existing(session: Session, project_id: str, name: str) -> Adapter:
    adapter = find_adapter(session, project_id, name)
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


def _describe(session: Session, context: Context, adapter: Adapter, param: str) -> LoraWeights:
    """Read what kind of adapter this is, unless it is quarantined.

    Raises:
        FailedDependencyError: it is quarantined, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    refuse_quarantined(adapter, param)
    base = Catalogue.read(session, context.settings).find(adapter.base_model)
    shapes = known_shapes(context.settings, base)
    try:
        with adapter_folder(context.storage, adapter.storage_key) as folder:
            return describe_adapter(folder, shapes)
    except AdapterError as error:
        raise FailedDependencyError(
            f"The model '{adapter.name}' is damaged: {error}.", code="model_damaged", param=param
        ) from error
    except OSError as error:
        raise _unreadable(adapter.name, error) from error


def _find_imported(session: Session, project_id: str, adapter_id: str) -> Adapter:
    query = select(Adapter).where(
        Adapter.project_id == project_id,
        Adapter.storage_key == f"adapters/{adapter_id}",
        Adapter.deleted_at.is_(None),
    )
    adapter = session.scalar(query)
    if adapter is None:
        raise NotFoundError("The adapter that this Idempotency-Key stands for was deleted.")
    return adapter


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

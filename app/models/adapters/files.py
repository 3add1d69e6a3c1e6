"""The files of published adapters: read for a check, a download or further training, and measured."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.context import Context
from app.core.database import Database
from app.core.errors import FailedDependencyError, UnavailableError
from app.models.adapters.archive import AdapterArchive
from app.models.adapters.base_shapes import known_shapes
from app.models.adapters.models import Adapter
from app.models.adapters.parent import Parent
from app.models.adapters.service import find_adapter, record_check, refuse_quarantined, require_adapter
from app.models.adapters.validation import (
    WEIGHTS,
    AdapterError,
    LoraWeights,
    Shapes,
    check_adapter,
    describe_adapter,
)
from app.models.catalogue import Catalogue
from app.storage.base import DamagedContentError, Storage

log = logging.getLogger("toque.models")


def archive_adapter(session: Session, context: Context, name: str) -> AdapterArchive:
    """Return the project's adapter as an archive to download.

    Raises:
        NotFoundError: the project has no such adapter.
        FailedDependencyError: it is quarantined, or its files are damaged.
        UnavailableError: the storage cannot be read now.
    """
    adapter = require_adapter(session, context.project_id, name)
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
        adapter = require_adapter(session, context.project_id, name)
        base = Catalogue.read(session, settings).get(adapter.base_model)
    problem: str | None = None
    try:
        check_adapter_files(context.storage, adapter.storage_key, known_shapes(settings, base), base.max_rank)
    except AdapterError as error:
        problem = error.message
    except OSError as error:
        raise _unreadable(name, error) from error
    with database.writer() as session:
        return record_check(session, name, problem)


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
    """Keep the folder of a published adapter on this machine until the block ends.

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


def _unreadable(name: str, error: OSError) -> UnavailableError:
    problem = f"The files of '{name}' cannot be read now ({error.strerror})."
    return UnavailableError(problem, code="storage_unavailable")

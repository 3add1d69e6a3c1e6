"""What can be done with files: upload, list, read, delete."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import get_args

from anyio import to_thread
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from app.context import Context
from app.core.database import Database, advisory_lock
from app.core.errors import InvalidRequestError, NotFoundError, UnavailableError
from app.core.idempotency import IdempotentRequest
from app.core.pagination import Order, fetch_page
from app.datasets.report import Report
from app.datasets.validation import PreparedBase
from app.files import checks
from app.files.checker import Checker
from app.files.models import File
from app.files.schemas import LONGEST_LIFE, SHORTEST_LIFE, UploadPurpose
from app.models.catalogue import Catalogue, prepared_base
from app.quotas.stored_bytes import require_bytes
from app.storage.base import DamagedContentError, Storage, object_key
from app.storage.incoming import IncomingFile, StoredFile

_URL_SECONDS = 300


def create_file(
    database: Database,
    context: Context,
    creating: IdempotentRequest,
    incoming: IncomingFile,
    filename: str,
    fields: dict[str, str],
) -> File:
    """Keep an uploaded file; one that is for training waits to be checked.

    Raises:
        InvalidRequestError: a field is wrong; nothing is kept.
        NotFoundError: the idempotency key stands for a file that was deleted.
        QuotaExceededError: the project stores too much.
    """
    purpose = _purpose(fields.get("purpose"))
    expires_at = _expiry(fields)
    incoming.finish()

    def create(session: Session) -> File:
        require_bytes(session, context.project_id, incoming.bytes, "file")
        return keep_file(session, context, incoming, filename, purpose, expires_at)

    with database.writer() as session:
        return creating.once(
            session,
            "file",
            [incoming.sha256, filename, fields],
            find=partial(get_file, session, context.project_id),
            create=partial(create, session),
        )


def keep_file(
    session: Session,
    context: Context,
    incoming: IncomingFile,
    filename: str,
    purpose: str,
    expires_at: float | None = None,
) -> File:
    """Publish finished bytes and add the row that names them; equal bytes are stored once.

    The lock orders this against a sweep of the same bytes: if the sweep came first, they are published again.
    The row comes first, as there may be no project any more.
    """
    key = object_key(incoming.sha256)
    advisory_lock(session, key)
    file = File(
        project_id=context.project_id,
        filename=plain_filename(filename),
        purpose=purpose,
        bytes=incoming.bytes,
        sha256=incoming.sha256,
        storage_key=key,
        status="uploaded" if purpose == "fine-tune" else "processed",
        expires_at=expires_at,
    )
    session.add(file)
    session.flush()
    context.storage.publish(incoming, key)
    if purpose == "fine-tune":
        checks.add(session, file)
    return file


def create_result_file(session: Session, project_id: str, filename: str, stored: StoredFile) -> File:
    """Add the row of a file that a job produced."""
    file = File(
        project_id=project_id,
        filename=filename,
        purpose="fine-tune-results",
        bytes=stored.bytes,
        sha256=stored.sha256,
        storage_key=stored.key,
    )
    session.add(file)
    session.flush()
    return file


def get_file(session: Session, project_id: str, file_id: str, *, param: str | None = None) -> File:
    """Return the project's file.

    Raises:
        NotFoundError: it does not exist, was deleted, has expired, or is another project's.
    """
    file = session.scalar(select(File).where(File.id == file_id, *_visible_to(project_id)))
    if file is None:
        raise NotFoundError(f"No file '{file_id}'.", code="file_not_found", param=param)
    return file


def get_report(session: Session, project_id: str, file_id: str) -> tuple[File, Report | None]:
    """Return the project's training file and the report of its check, which is None until it is checked.

    Raises:
        NotFoundError: as `get_file`.
        InvalidRequestError: the file is not for training.
    """
    file = get_file(session, project_id, file_id)
    if file.purpose != "fine-tune":
        raise InvalidRequestError(
            f"The file '{file.id}' has the purpose '{file.purpose}': only 'fine-tune' files are checked.",
            code="invalid_file_purpose",
            param="file_id",
        )
    return file, checks.report_of(session, file.id)


async def validate_for(
    database: Database, context: Context, checker: Checker, file_id: str, base_model: str | None
) -> tuple[File, Report | None]:
    """Return what `get_report` returns, but with the tokens of the given base model counted.

    Raises:
        NotFoundError: as `get_report`; or the catalogue has no such model.
        InvalidRequestError: the file is not for training.
    """

    def read() -> tuple[File, Report | None]:
        with database.reader() as session:
            return get_report(session, context.project_id, file_id)

    def find_base() -> PreparedBase | None:
        with database.reader() as session:
            return prepared_base(context.settings, Catalogue.read(session, context.settings), base_model)

    file, report = await to_thread.run_sync(read)
    if base_model is None or report is None:
        return file, report
    base = await to_thread.run_sync(find_base)
    if base is None or base.name != report.base_model:
        report = await checker.validate(context.project_id, file.storage_key, base)
    return file, report


def find_content(session: Session, context: Context, file_id: str) -> File:
    """Return the project's file if its bytes are there.

    Raises:
        NotFoundError: as `get_file`.
        UnavailableError: the storage does not have it, or cannot be reached now.
    """
    file = get_file(session, context.project_id, file_id)
    require_content(context.storage, file)
    return file


def require_content(storage: Storage, file: File) -> None:
    """Check that the file's bytes are there.

    Raises:
        UnavailableError: the storage does not have it, or cannot be reached now.
    """
    if not storage.exists(file.storage_key):
        raise _without_content(file)


@contextmanager
def content(storage: Storage, file: File) -> Generator[Path]:
    """Have the file's bytes on this machine until the block ends.

    Raises:
        UnavailableError: the storage does not have it, or cannot be reached now.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(storage.local(file.storage_key))
        except (FileNotFoundError, DamagedContentError):
            raise _without_content(file) from None
        yield path


def content_url(context: Context, file: File) -> str | None:
    """Return a URL of the bucket that has the file's bytes for five minutes; None if there shall be none."""
    if not context.settings.storage_redirects:
        return None
    return context.storage.signed_url(file.storage_key, "GET", _URL_SECONDS)


def _without_content(file: File) -> UnavailableError:
    return UnavailableError(
        f"The content of '{file.id}' cannot be read now: the storage does not have it.",
        code="storage_unavailable",
    )


def list_files(
    session: Session, project_id: str, *, purpose: str | None, after: str | None, limit: int, order: Order
) -> tuple[Sequence[File], bool]:
    """Return a page of the project's files, and whether more follow."""
    query = select(File).where(*_visible_to(project_id))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    return fetch_page(
        session, query, (File.created_at, File.id), identity=File.id, after=after, limit=limit, order=order
    )


def delete_file(session: Session, project_id: str, file_id: str) -> File:
    """Hide the file from its owner; the row stays for the jobs that name it."""
    file = get_file(session, project_id, file_id)
    file.deleted_at = time.time()
    return file


def plain_filename(name: str) -> str:
    """Return the name without folders and control characters: it is shown to people, never opened."""
    plain = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in plain if character.isprintable())[:255] or "file"


def _visible_to(project_id: str) -> tuple[ColumnElement[bool], ...]:
    alive = or_(File.expires_at.is_(None), File.expires_at > time.time())
    return File.project_id == project_id, File.deleted_at.is_(None), alive


def _purpose(given: str | None) -> str:
    if given is None:
        raise InvalidRequestError(
            "Missing required parameter 'purpose'.", code="missing_required_parameter", param="purpose"
        )
    if given not in get_args(UploadPurpose):
        raise InvalidRequestError(
            f"Invalid value for 'purpose': one of {', '.join(get_args(UploadPurpose))}.",
            code="invalid_value",
            param="purpose",
        )
    return given


def _expiry(fields: dict[str, str]) -> float | None:
    seconds = fields.get("expires_after[seconds]")
    anchor = fields.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return None
    if anchor != "created_at":
        raise InvalidRequestError(
            "Invalid value for 'expires_after[anchor]': only 'created_at'.",
            code="invalid_value",
            param="expires_after[anchor]",
        )
    if seconds is None or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 9:
        life = 0
    else:
        life = int(seconds)
    if not SHORTEST_LIFE <= life <= LONGEST_LIFE:
        raise InvalidRequestError(
            f"Invalid value for 'expires_after[seconds]': from {SHORTEST_LIFE} to {LONGEST_LIFE}.",
            code="invalid_value",
            param="expires_after[seconds]",
        )
    return time.time() + life

"""Uploads in parts: a file arrives in pieces, in any order, and is put together in the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.context import Context
from app.core.database import Database
from app.core.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    ToqueError,
    UnavailableError,
)
from app.core.idempotency import IdempotentRequest
from app.core.pagination import Order, fetch_page
from app.core.settings import Settings
from app.files import service as files_service
from app.files.models import File
from app.quotas.stored_bytes import require_bytes
from app.storage.incoming import IncomingFile
from app.uploads.assembly import assemble, ordered
from app.uploads.models import Upload, UploadPart, parts_key
from app.uploads.quota import require_room
from app.uploads.schemas import CompleteUpload, CreateUpload


def create_upload(
    session: Session, context: Context, creating: IdempotentRequest, request: CreateUpload
) -> Upload:
    """Announce a file that will arrive in parts.

    Raises:
        TooLargeError: it is larger than the service takes.
        QuotaExceededError: the project has too many open uploads, or they have announced too much, or it
            stores too much.
    """
    if request.bytes > context.settings.max_upload_bytes:
        raise _too_large(context.settings)

    def create() -> Upload:
        require_room(session, context, request.bytes)
        require_bytes(session, context.project_id, request.bytes, "bytes")
        upload = Upload(
            project_id=context.project_id,
            filename=files_service.plain_filename(request.filename),
            purpose=request.purpose,
            mime_type=request.mime_type,
            bytes=request.bytes,
            file_life_seconds=request.expires_after.seconds if request.expires_after else None,
        )
        session.add(upload)
        session.flush()
        return upload

    return creating.once(
        session,
        "upload",
        request.model_dump(exclude_unset=True),
        find=partial(get_upload, session, context.project_id),
        create=create,
    )


def list_uploads(
    session: Session, project_id: str, *, after: str | None, limit: int, order: Order
) -> tuple[Sequence[Upload], bool]:
    """Return a page of the project's uploads, whatever became of them, and whether more follow."""
    return fetch_page(
        session,
        select(Upload).where(Upload.project_id == project_id),
        (Upload.created_at, Upload.id),
        identity=Upload.id,
        after=after,
        limit=limit,
        order=order,
    )


def get_upload(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """Return the project's upload; with `lock`, nothing else changes it until this transaction ends.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)
    upload = session.scalar(query.with_for_update() if lock else query)
    if upload is None:
        raise NotFoundError(f"No upload '{upload_id}'.", code="upload_not_found")
    return upload


def get_open_upload(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """Return the project's upload if it still takes parts.

    Raises:
        NotFoundError: it does not exist, or is another project's.
        ConflictError: it was completed or cancelled, or has expired.
    """
    upload = get_upload(session, project_id, upload_id, lock=lock)
    if upload.has_expired or upload.status != "pending":
        raise _over(upload)
    return upload


def parts_of(session: Session, upload: Upload) -> Sequence[UploadPart]:
    """Return the upload's parts in the order in which they arrived."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id)
    return session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)).all()


def find_upload(
    session: Session, context: Context, upload_id: str
) -> tuple[Upload, File | None, Sequence[UploadPart]]:
    """Return the project's upload, the file that it became, and the parts that have arrived.

    Raises:
        NotFoundError: it does not exist, or is another project's.
        StorageUnavailableError: the storage cannot be reached now.
    """
    upload = get_upload(session, context.project_id, upload_id)
    parts = parts_of(session, upload)
    if upload.status == "pending" and any(part.is_direct for part in parts):
        there = {entry.key: entry.bytes for entry in context.storage.files(parts_key(upload.id))}
        parts = [part for part in parts if there.get(part.storage_key) == part.bytes]
    return upload, _file(session, upload), parts


def complete_upload(
    database: Database,
    context: Context,
    creating: IdempotentRequest,
    upload_id: str,
    request: CompleteUpload,
) -> tuple[Upload, File | None]:
    """Make a file of these parts, in this order; of several attempts at once, one does.

    The bytes are copied and checked between two short transactions, so that nobody waits for them.

    Raises:
        NotFoundError: the upload does not exist, or is another project's.
        ConflictError: it was completed or cancelled, or has expired.
        InvalidRequestError: the parts are not those of the file, or a line of it is wrong; nothing is kept.
        UnavailableError: the storage does not have the parts.
    """
    project_id, content = context.project_id, [upload_id, request.model_dump(exclude_unset=True)]
    with database.writer() as session:
        if creating.find(session, "upload.complete", content) is not None:
            upload = get_upload(session, project_id, upload_id)
            return upload, _file(session, upload)
        upload = get_open_upload(session, project_id, upload_id)
        parts = ordered(upload, parts_of(session, upload), request.part_ids)

    with context.storage.incoming() as incoming:
        failure: ToqueError | None = None  # unless another attempt has made the file and removed its parts
        try:
            md5 = assemble(context.storage, parts, incoming, with_md5=request.md5 is not None)
        except FileNotFoundError:
            problem = "The parts cannot be read now: the storage does not have them."
            failure = UnavailableError(problem, code="storage_unavailable")
        except InvalidRequestError as error:
            failure = error
        else:
            if request.md5 is not None and md5 != request.md5.lower():
                problem = f"The MD5 of these parts is {md5}, not '{request.md5}'."
                raise InvalidRequestError(problem, code="md5_mismatch", param="md5")
            incoming.finish()

        with database.writer() as session:
            # It may have expired since the first transaction: this attempt was in time all the same.
            upload = get_upload(session, project_id, upload_id, lock=True)
            upload = creating.once(
                session,
                "upload.complete",
                content,
                find=partial(get_upload, session, project_id),
                create=partial(_complete, session, context, upload, incoming, failure),
            )
            file = _file(session, upload)
    context.storage.remove(parts_key(upload.id))
    return upload, file


def _complete(
    session: Session, context: Context, upload: Upload, incoming: IncomingFile, failure: ToqueError | None
) -> Upload:
    """Turn a pending upload into a file of the assembled bytes, unless that has failed."""
    if upload.status != "pending":
        raise _over(upload)
    if failure is not None:
        raise failure
    life = upload.file_life_seconds
    expires_at = time.time() + life if life is not None else None
    file = files_service.keep_file(session, context, incoming, upload.filename, upload.purpose, expires_at)
    upload.status, upload.file_id = "completed", file.id
    return upload


def cancel_upload(database: Database, context: Context, upload_id: str) -> Upload:
    """Give an upload up, and remove its parts once that is committed; one that was given up stays as it is.

    Raises:
        NotFoundError: it does not exist, or is another project's.
        ConflictError: it was completed, or has expired.
    """
    with database.writer() as session:
        upload = get_upload(session, context.project_id, upload_id, lock=True)
        if upload.has_expired or upload.status == "completed":
            raise _over(upload)
        upload.status = "cancelled"
    context.storage.remove(parts_key(upload.id))
    return upload


def _file(session: Session, upload: Upload) -> File | None:
    """Return the file that the upload became; None once that was deleted or has expired."""
    try:
        return files_service.get_file(session, upload.project_id, upload.file_id) if upload.file_id else None
    except NotFoundError:
        return None


def _over(upload: Upload) -> ConflictError:
    status = "expired" if upload.has_expired else upload.status
    return ConflictError(f"The upload is {status}; nothing can be changed any more.", code=f"upload_{status}")


def _too_large(settings: Settings) -> TooLargeError:
    return TooLargeError(
        f"An upload has at most {settings.max_upload_bytes:,} bytes (TOQUE_MAX_UPLOAD_BYTES).",
        code="upload_too_large",
        param="bytes",
    )

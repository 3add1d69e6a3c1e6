"""Uploads in parts: a file arrives in pieces, in any order, and is put together in the end."""

from __future__ import annotations

import hashlib
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
    UnavailableError,
)
from app.core.idempotency import IdempotentRequest
from app.core.pagination import Order, fetch_page
from app.core.settings import Settings
from app.files import service as files_service
from app.files.models import File
from app.quotas.stored_bytes import require_bytes
from app.storage.base import Storage
from app.storage.incoming import IncomingFile
from app.uploads.models import Upload, UploadPart, parts_key
from app.uploads.quota import require_room
from app.uploads.schemas import MAX_PARTS, CompleteUpload, CreateUpload

MAX_PART_BYTES = 64 * 2**20
_BLOCK_BYTES = 4 * 2**20


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


def find_upload(
    session: Session, project_id: str, upload_id: str
) -> tuple[Upload, File | None, Sequence[UploadPart]]:
    """Return the project's upload, the file that it became, and the parts that have arrived.

    Raises:
        NotFoundError: it does not exist, or is another project's.
    """
    upload = get_upload(session, project_id, upload_id)
    return upload, _file(session, upload), _parts(session, upload)


def add_part(
    database: Database, context: Context, creating: IdempotentRequest, upload_id: str, incoming: IncomingFile
) -> UploadPart:
    """Keep a part. Without an idempotency key nothing tells a retry apart: a file may well have equal parts.

    Raises:
        ConflictError: the upload was completed or cancelled, or has expired.
        InvalidRequestError: there are too many parts.
        TooLargeError: with this part there would be more bytes than were announced.
    """
    incoming.finish()
    with database.writer() as session:
        upload = get_open_upload(session, context.project_id, upload_id, lock=True)
        create = partial(_keep_part, session, context, upload, incoming)
        if creating.idempotency_key is None:
            return create()
        return creating.once(
            session,
            "upload.part",
            [upload.id, incoming.sha256],
            find=partial(session.get_one, UploadPart),
            create=create,
        )


def _keep_part(session: Session, context: Context, upload: Upload, incoming: IncomingFile) -> UploadPart:
    parts = _parts(session, upload)
    if len(parts) >= MAX_PARTS:
        raise InvalidRequestError(
            f"An upload has {MAX_PARTS:,} parts at most; send larger ones.", code="too_many_parts"
        )
    sizes = {part.sha256: part.bytes for part in parts} | {incoming.sha256: incoming.bytes}
    if (total := sum(sizes.values())) > upload.bytes:
        raise TooLargeError(
            f"With this part the upload has {total:,} bytes; {upload.bytes:,} were announced.",
            code="upload_too_large",
            param="data",
        )
    part = UploadPart(upload_id=upload.id, bytes=incoming.bytes, sha256=incoming.sha256)
    context.storage.publish(incoming, part.storage_key)
    session.add(part)
    session.flush()
    return part


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
        parts = _ordered(upload, _parts(session, upload), request.part_ids)

    with context.storage.incoming() as incoming:
        are_parts_lost = False
        try:
            md5 = _assemble(context.storage, parts, incoming, with_md5=request.md5 is not None)
        except FileNotFoundError:  # another attempt may have made the file and removed them
            are_parts_lost = True
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
                create=partial(_complete, session, context, upload, None if are_parts_lost else incoming),
            )
            file = _file(session, upload)
    context.storage.remove(parts_key(upload.id))
    return upload, file


def _complete(session: Session, context: Context, upload: Upload, incoming: IncomingFile | None) -> Upload:
    """Turn a pending upload into a file of the assembled bytes, which are None if a part is not there."""
    if upload.status != "pending":
        raise _over(upload)
    if incoming is None:
        raise UnavailableError(
            "The parts cannot be read now: the storage does not have them.", code="storage_unavailable"
        )
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


def _parts(session: Session, upload: Upload) -> Sequence[UploadPart]:
    """Return the upload's parts in the order in which they arrived."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id)
    return session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)).all()


def _file(session: Session, upload: Upload) -> File | None:
    """Return the file that the upload became; None once that was deleted or has expired."""
    try:
        return files_service.get_file(session, upload.project_id, upload.file_id) if upload.file_id else None
    except NotFoundError:
        return None


def _ordered(upload: Upload, parts: Sequence[UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    """Return the parts that the request names, after checking that they are the whole file, each once."""
    known = {part.id: part for part in parts}
    ordered: dict[str, UploadPart] = {}
    for position, part_id in enumerate(part_ids):
        param = f"part_ids[{position}]"
        if part_id in ordered:
            raise InvalidRequestError(
                f"The part '{part_id}' is named twice.", code="part_repeated", param=param
            )
        if part_id not in known:
            raise InvalidRequestError(
                f"No part '{part_id}' in this upload.", code="part_not_found", param=param
            )
        ordered[part_id] = known[part_id]
    total = sum(part.bytes for part in ordered.values())
    if total != upload.bytes:
        raise InvalidRequestError(
            f"These parts have {total:,} bytes together; {upload.bytes:,} were announced.",
            code="bytes_mismatch",
            param="part_ids",
        )
    return list(ordered.values())


def _assemble(
    storage: Storage, parts: Sequence[UploadPart], incoming: IncomingFile, *, with_md5: bool
) -> str | None:
    """Copy the parts one after the other. Returns the MD5 of all bytes if that is asked for."""
    md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
    block = memoryview(bytearray(_BLOCK_BYTES))
    for part in parts:
        with storage.open(part.storage_key) as file:
            while count := file.readinto(block):
                incoming.write(block[:count])
                if md5 is not None:
                    md5.update(block[:count])
    return md5.hexdigest() if md5 is not None else None


def _over(upload: Upload) -> ConflictError:
    status = "expired" if upload.has_expired else upload.status
    return ConflictError(f"The upload is {status}; nothing can be changed any more.", code=f"upload_{status}")


def _too_large(settings: Settings) -> TooLargeError:
    return TooLargeError(
        f"An upload has at most {settings.max_upload_bytes:,} bytes (TOQUE_MAX_UPLOAD_BYTES).",
        code="upload_too_large",
        param="bytes",
    )

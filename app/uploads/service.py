"""Rules on uploads: a file that comes in parts, in any order, and is one file in the end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.database import Database
from app.core.errors import ConflictError, InvalidRequestError, NotFoundError, TooLargeError, UnavailableError
from app.core.idempotency import CreationRequest
from app.core.settings import Settings
from app.files import service as files_service
from app.files.models import File
from app.storage.base import Storage
from app.storage.incoming import IncomingFile
from app.uploads.models import Upload, UploadPart, parts_key
from app.uploads.schemas import MAX_PARTS, CompleteUpload, CreateUpload

MAX_PART_BYTES = 64 * 2**20
_BLOCK_BYTES = 4 * 2**20


def create_upload(
    session: Session, settings: Settings, creating: CreationRequest, request: CreateUpload
) -> Upload:
    """Announces a file.

    Raises:
        TooLargeError: it is larger than the service takes.
    """
    if request.bytes > settings.max_upload_bytes:
        raise _too_large(settings, "bytes")
    content = request.model_dump(exclude_unset=True)
    if (known := creating.find(session, "upload", content)) is not None:
        return get_upload(session, creating.project_id, known)
    upload = Upload(
        project_id=creating.project_id,
        filename=files_service.plain_filename(request.filename),
        purpose=request.purpose,
        mime_type=request.mime_type,
        bytes=request.bytes,
        file_life_seconds=request.expires_after.seconds if request.expires_after else None,
    )
    session.add(upload)
    session.flush()
    creating.remember(session, "upload", content, upload.id)
    return upload


def get_upload(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """The project's upload; locked, nothing else changes it before this transaction has ended.

    Raises:
        NotFoundError: not there, or another project's.
    """
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)
    upload = session.scalar(query.with_for_update() if lock else query)
    if upload is None:
        raise NotFoundError(f"No upload '{upload_id}'.", code="upload_not_found")
    return upload


def get_open_upload(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """The project's upload, which still takes parts.

    Raises:
        NotFoundError: not there, or another project's.
        ConflictError: it was completed or cancelled, or has expired.
    """
    upload = get_upload(session, project_id, upload_id, lock=lock)
    if upload.has_expired or upload.status != "pending":
        raise _over(upload)
    return upload


def find_upload(
    session: Session, project_id: str, upload_id: str
) -> tuple[Upload, File | None, Sequence[UploadPart]]:
    """The project's upload, the file that it became, and the parts that have arrived.

    Raises:
        NotFoundError: not there, or another project's.
    """
    upload = get_upload(session, project_id, upload_id)
    return upload, _file(session, upload), _parts(session, upload)


def add_part(
    session: Session,
    storage: Storage,
    settings: Settings,
    creating: CreationRequest,
    *,
    upload_id: str,
    incoming: IncomingFile,
) -> UploadPart:
    """Keeps a part. Only an idempotency key makes one of two: a file may well have equal parts.

    Raises:
        ConflictError: the upload was completed or cancelled, or has expired.
        InvalidRequestError: there are too many parts.
        TooLargeError: with this part there would be more than an upload may have.
    """
    incoming.finish()
    upload = get_open_upload(session, creating.project_id, upload_id, lock=True)
    content, has_key = [upload.id, incoming.sha256], creating.idempotency_key is not None
    if has_key and (known := creating.find(session, "upload.part", content)) is not None:
        return session.get_one(UploadPart, known)
    parts = _parts(session, upload)
    if len(parts) >= MAX_PARTS:
        raise InvalidRequestError(
            f"An upload has {MAX_PARTS:,} parts at most; send larger ones.", code="too_many_parts"
        )
    sizes = {part.sha256: part.bytes for part in parts} | {incoming.sha256: incoming.bytes}
    if sum(sizes.values()) > settings.max_upload_bytes:
        raise _too_large(settings, "data")
    part = UploadPart(upload_id=upload.id, bytes=incoming.bytes, sha256=incoming.sha256)
    storage.publish(incoming, part.storage_key)
    session.add(part)
    session.flush()
    if has_key:
        creating.remember(session, "upload.part", content, part.id)
    return part


def complete_upload(
    database: Database,
    storage: Storage,
    creating: CreationRequest,
    upload_id: str,
    request: CompleteUpload,
) -> tuple[Upload, File | None]:
    """Makes a file of these parts, in this order; of several tries at once, one does.

    The bytes are copied and checked between two short transactions, so that nobody waits for them.

    Raises:
        NotFoundError: not there, or another project's.
        ConflictError: it was completed or cancelled, or has expired.
        InvalidRequestError: the parts are not those of the file, or a line of it is wrong; nothing is kept.
        UnavailableError: the storage does not have the parts.
    """
    project_id, content = creating.project_id, [upload_id, request.model_dump(exclude_unset=True)]
    with database.writer() as session:
        if creating.find(session, "upload.complete", content) is not None:
            upload = get_upload(session, project_id, upload_id)
            return upload, _file(session, upload)
        upload = get_open_upload(session, project_id, upload_id)
        parts = _ordered(upload, _parts(session, upload), request.part_ids)

    with storage.incoming() as incoming:
        lost = False
        try:
            md5 = _assemble(storage, parts, incoming, with_md5=request.md5 is not None)
        except FileNotFoundError:  # another try has made the file by now
            lost = True
        else:
            if request.md5 is not None and md5 != request.md5.lower():
                problem = f"The MD5 of these parts is {md5}, not '{request.md5}'."
                raise InvalidRequestError(problem, code="md5_mismatch", param="md5")
            incoming.finish()

        with database.writer() as session:
            # One that expired meanwhile was completed in time.
            upload = get_upload(session, project_id, upload_id, lock=True)
            if creating.find(session, "upload.complete", content) is None:
                if upload.status != "pending":
                    raise _over(upload)
                if lost:
                    raise UnavailableError(
                        "The parts cannot be read now: the storage does not have them.",
                        code="storage_unavailable",
                    )
                life = upload.file_life_seconds
                file = files_service.keep_file(
                    session,
                    storage,
                    incoming,
                    project_id=project_id,
                    filename=upload.filename,
                    purpose=upload.purpose,
                    expires_at=time.time() + life if life is not None else None,
                )
                upload.status, upload.file_id = "completed", file.id
                creating.remember(session, "upload.complete", content, upload.id)
            file = _file(session, upload)
    storage.remove_folder(parts_key(upload.id))
    return upload, file


def cancel_upload(database: Database, storage: Storage, project_id: str, upload_id: str) -> Upload:
    """Gives an upload up; one that was, it leaves as it is. Its parts go once that is certain.

    Raises:
        NotFoundError: not there, or another project's.
        ConflictError: it was completed, or has expired.
    """
    with database.writer() as session:
        upload = get_upload(session, project_id, upload_id, lock=True)
        if upload.has_expired or upload.status == "completed":
            raise _over(upload)
        upload.status = "cancelled"
    storage.remove_folder(parts_key(upload.id))
    return upload


def _parts(session: Session, upload: Upload) -> Sequence[UploadPart]:
    """In the order in which they arrived."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id)
    return session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)).all()


def _file(session: Session, upload: Upload) -> File | None:
    """What the upload became; None once it was deleted or has expired."""
    try:
        return files_service.get_file(session, upload.project_id, upload.file_id) if upload.file_id else None
    except NotFoundError:
        return None


def _ordered(upload: Upload, parts: Sequence[UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    """The parts as the request names them: each once, and all of the file together."""
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
    """Copies the parts, one after the other; returns the MD5 of it all where it is asked for."""
    md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
    block = memoryview(bytearray(_BLOCK_BYTES))
    for part in parts:
        with storage.path(part.storage_key).open("rb", buffering=0) as file:
            while count := file.readinto(block):
                incoming.write(block[:count])
                if md5 is not None:
                    md5.update(block[:count])
    return md5.hexdigest() if md5 is not None else None


def _over(upload: Upload) -> ConflictError:
    status = "expired" if upload.has_expired else upload.status
    return ConflictError(
        f"The upload is {status}; nothing can be changed any more.", code=f"upload_{status}", param="status"
    )


def _too_large(settings: Settings, param: str) -> TooLargeError:
    return TooLargeError(
        f"An upload has at most {settings.max_upload_bytes:,} bytes (TOQUE_MAX_UPLOAD_BYTES).",
        code="upload_too_large",
        param=param,
    )

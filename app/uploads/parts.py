"""The parts of an upload as they come: through the service, or straight into the bucket."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from app.context import Context
from app.core.database import Database
from app.core.errors import NotFoundError
from app.core.idempotency import IdempotentRequest
from app.storage.incoming import IncomingFile
from app.uploads.models import Upload, UploadPart
from app.uploads.quota import require_part_room
from app.uploads.schemas import AnnouncePart
from app.uploads.service import get_open_upload, parts_of

_URL_SECONDS = 900


def add_part(
    database: Database, context: Context, creating: IdempotentRequest, upload_id: str, incoming: IncomingFile
) -> UploadPart:
    """Keep a part that has arrived.

    Raises:
        ConflictError: the upload was completed or cancelled, or has expired.
        InvalidRequestError: there are too many parts.
        TooLargeError: with this part there would be more bytes than were announced.
    """
    incoming.finish()
    with database.writer() as session:
        upload = get_open_upload(session, context.project_id, upload_id, lock=True)
        create = partial(_keep_part, session, context, upload, incoming)
        return _once(session, creating, [upload.id, incoming.sha256], create)


def announce_part(
    session: Session,
    context: Context,
    creating: IdempotentRequest,
    upload_id: str,
    request: AnnouncePart,
) -> tuple[UploadPart, str]:
    """Add a part, and return it with a URL to which the client can put its bytes for a quarter of an hour.

    They go straight into the bucket, and are checked when the file is made of its parts.

    Raises:
        NotFoundError: there is no such upload, or the storage has no such URLs.
        ConflictError, InvalidRequestError, TooLargeError: as `add_part`.
    """
    upload = get_open_upload(session, context.project_id, upload_id, lock=True)
    create = partial(_add_part, session, upload, request.bytes, request.sha256, is_direct=True)
    part = _once(session, creating, [upload.id, "direct", request.model_dump()], create)
    storage, is_allowed = context.storage, context.settings.storage_signed_uploads
    url = storage.signed_url(part.storage_key, "PUT", _URL_SECONDS) if is_allowed else None
    if url is None:
        raise NotFoundError(
            f"This service gives no URLs to send parts to: send them to /v1/uploads/{upload.id}/parts.",
            code="no_signed_urls",
        )
    return part, url


def _once(
    session: Session, creating: IdempotentRequest, content: list[Any], create: Callable[[], UploadPart]
) -> UploadPart:
    """Add a part, once for an idempotency key.

    Without one nothing tells a retry apart, as a file may well have equal parts.
    """
    if creating.idempotency_key is None:
        return create()
    find = partial(session.get_one, UploadPart)
    return creating.once(session, "upload.part", content, find=find, create=create)


def _keep_part(session: Session, context: Context, upload: Upload, incoming: IncomingFile) -> UploadPart:
    part = _add_part(session, upload, incoming.bytes, incoming.sha256)
    context.storage.publish(incoming, part.storage_key)
    return part


def _add_part(
    session: Session, upload: Upload, size: int, sha256: str, *, is_direct: bool = False
) -> UploadPart:
    require_part_room(upload, parts_of(session, upload), size, sha256, param="bytes" if is_direct else "data")
    part = UploadPart(upload_id=upload.id, bytes=size, sha256=sha256, is_direct=is_direct)
    session.add(part)
    session.flush()
    return part

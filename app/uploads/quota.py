"""How many uploads a project may have open at the same time, and how many bytes and parts each may have."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.context import Context
from app.core.database import advisory_lock
from app.core.errors import InvalidRequestError, QuotaExceededError, TooLargeError
from app.uploads.models import Upload, UploadPart
from app.uploads.schemas import MAX_PARTS

_ADVICE = "complete or cancel some (GET /v1/uploads lists them), or wait until they expire"


def require_room(session: Session, context: Context, announced: int) -> None:
    """Check that the project may open one more upload, of so many bytes, until this transaction ends.

    Raises:
        QuotaExceededError: it has too many open uploads, or they have announced too much.
    """
    settings, project_id = context.settings, context.project_id
    advisory_lock(session, f"uploads of {project_id}")  # two at once would not count each other
    is_open = Upload.status == "pending", Upload.expires_at > time.time()
    size = func.coalesce(func.sum(Upload.bytes), 0)
    opened = select(func.count(), size).where(Upload.project_id == project_id, *is_open)
    count, total = session.execute(opened).one()
    if count >= settings.max_open_uploads_per_project:
        raise QuotaExceededError(
            f"{count:,} uploads of the project are open already (TOQUE_MAX_OPEN_UPLOADS_PER_PROJECT): "
            f"{_ADVICE}.",
            code="too_many_uploads",
        )
    most = settings.max_open_upload_bytes_per_project
    if total + announced > most:
        raise QuotaExceededError(
            f"The project's open uploads have announced {total:,} bytes; the limit is {most:,} "
            f"(TOQUE_MAX_OPEN_UPLOAD_BYTES_PER_PROJECT): {_ADVICE}.",
            code="too_many_upload_bytes",
            param="bytes",
        )


def require_part_room(
    upload: Upload, parts: Sequence[UploadPart], size: int, sha256: str, *, param: str
) -> None:
    """Check that the upload may have one more part beside those that it has; equal ones count once.

    Raises:
        InvalidRequestError: there are too many parts.
        TooLargeError: with this part there would be more bytes than were announced.
    """
    if len(parts) >= MAX_PARTS:
        raise InvalidRequestError(
            f"An upload has {MAX_PARTS:,} parts at most; send larger ones.", code="too_many_parts"
        )
    sizes = {sha256: size}
    for part in parts:  # what was announced with a hash may be of any size
        sizes[part.sha256] = max(part.bytes, sizes.get(part.sha256, 0))
    if (total := sum(sizes.values())) > upload.bytes:
        raise TooLargeError(
            f"With this part the upload has {total:,} bytes; {upload.bytes:,} were announced.",
            code="upload_too_large",
            param=param,
        )

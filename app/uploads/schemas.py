"""Uploads on the wire: OpenAI's upload and part objects.

Source: the types of OpenAI's Python client, `openai.types.upload` and `openai.types.uploads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, cast

from pydantic import BaseModel, Field, StringConstraints

from app.core.optional_field import OmittedIfNone
from app.core.pagination import Identified
from app.files.models import File
from app.files.schemas import ExpiresAfter, FileObject, UploadPurpose
from app.uploads.models import Upload, UploadPart

MAX_PARTS = 10_000
MAX_PART_BYTES = 64 * 2**20

Status = Literal["pending", "completed", "cancelled", "expired"]
MimeType = Annotated[str, StringConstraints(max_length=255, pattern=r"^[!-~][ -~]*$")]
Md5 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")]


class CreateUpload(BaseModel):
    """A request to upload a file in parts."""

    filename: Annotated[str, Field(min_length=1)]
    purpose: UploadPurpose
    bytes: Annotated[int, Field(ge=1, strict=True)]
    mime_type: MimeType
    expires_after: ExpiresAfter | None = None


class CompleteUpload(BaseModel):
    """The parts that make the file, in order."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_PARTS)]
    md5: Md5 | None = None
    """The MD5 of the whole file, in hexadecimal."""


class AnnouncePart(BaseModel):
    """A part that is put straight into the bucket."""

    bytes: Annotated[int, Field(ge=1, le=MAX_PART_BYTES, strict=True)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class PartObject(Identified):
    """OpenAI's part object, with the size and hash of its bytes."""

    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, part: UploadPart) -> PartObject:
        """Return the row as the API shows it."""
        return cls(
            id=part.id,
            created_at=int(part.created_at),
            upload_id=part.upload_id,
            bytes=part.bytes,
            sha256=part.sha256,
        )


class AnnouncedPart(PartObject):
    """A part with the URL to which its bytes are to be sent."""

    url: str
    """Where the bytes are to be sent, with PUT and without a key; it is valid for a quarter of an hour."""

    @classmethod
    def at(cls, part: UploadPart, url: str) -> AnnouncedPart:
        """Return the row and the URL as the API shows them."""
        return cls(**PartObject.of(part).model_dump(), url=url)


class UploadObject(Identified):
    """OpenAI's upload object; retrieved by itself, with the parts that have arrived."""

    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Status
    file: FileObject | None = None
    parts: OmittedIfNone[list[PartObject]] = None

    @classmethod
    def of(
        cls, upload: Upload, file: File | None = None, parts: Sequence[UploadPart] | None = None
    ) -> UploadObject:
        """Return the row as the API shows it; `file` is what it was completed to."""
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=int(upload.created_at),
            expires_at=int(upload.expires_at),
            filename=upload.filename,
            purpose=upload.purpose,
            status="expired" if upload.has_expired else cast("Status", upload.status),
            file=FileObject.of(file) if file else None,
            parts=[PartObject.of(part) for part in parts] if parts is not None else None,
        )

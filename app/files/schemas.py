"""Files on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.core.optional_field import OmittedIfNone
from app.core.pagination import Identified
from app.datasets.report import Counts, Duplicates, Finding, FindingCount, Report, TokenLengths
from app.files.models import File

UploadPurpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]

SHORTEST_LIFE, LONGEST_LIFE = 3600, 30 * 86400
"""The shortest and the longest life that `expires_after` may give a file, in seconds."""


class ExpiresAfter(BaseModel):
    """When a file expires."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST_LIFE, le=LONGEST_LIFE, strict=True)]


class FileObject(Identified):
    """OpenAI's file object, and `sha256`."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: OmittedIfNone[int] = None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: OmittedIfNone[str] = None
    sha256: str

    @classmethod
    def of(cls, file: File) -> FileObject:
        """Return the row as the API shows it."""
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created_at),
            expires_at=int(file.expires_at) if file.expires_at is not None else None,
            filename=file.filename,
            purpose=file.purpose,
            status=file.status,  # pyright: ignore[reportArgumentType] - one of the three
            status_details=file.status_details,
            sha256=file.sha256,
        )


class FileDeleted(BaseModel):
    """The confirmation that a file was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileValidation(BaseModel):
    """The report of a training file's check; all but the status is empty until the check is done."""

    object: Literal["file.validation"] = "file.validation"
    file_id: str
    status: Literal["uploaded", "processed", "error"]
    base_model: str | None = None
    """The base model whose tokens are counted; null if none is prepared on this machine."""
    counts: Counts | None = None
    token_lengths: TokenLengths | None = None
    duplicates: Duplicates | None = None
    scripts: dict[str, int] = {}
    finding_counts: list[FindingCount] = []
    findings: list[Finding] = []
    longest_line: int | None = None

    @classmethod
    def of(cls, file: File, report: Report | None) -> FileValidation:
        """Return the file's report as the API shows it."""
        found = report.model_dump() if report is not None else {}
        return cls(file_id=file.id, status=file.status, **found)  # pyright: ignore[reportArgumentType] - as above

"""Batches on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.batches.models import Batch
from app.core.pagination import Identified
from app.files.schemas import ExpiresAfter
from app.fine_tuning.schemas import Metadata

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class CreateBatch(BaseModel):
    """A request to answer a file of requests in the background."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    """The time in which the batch is answered; what is left after it expires."""
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchError(BaseModel):
    """Something that is wrong with the input file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    """The number of the line, from 1."""


class BatchErrors(BaseModel):
    """What is wrong with the input file, the first hundred errors of it."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Requests of the batch."""

    total: int
    completed: int
    """Requests that were answered."""
    failed: int
    """Requests that were refused, or failed."""


class InputTokensDetails(BaseModel):
    """What the input tokens consist of."""

    cached_tokens: int


class OutputTokensDetails(BaseModel):
    """What the output tokens consist of."""

    reasoning_tokens: int


class BatchUsage(BaseModel):
    """The tokens of all answers so far."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchObject(Identified):
    """OpenAI's batch object."""

    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Status
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None = None

    @classmethod
    def of(cls, batch: Batch) -> BatchObject:
        """Return the row as the API shows it. Its router leaves out what is None."""
        errors = [BatchError.model_validate(error) for error in batch.errors or ()]
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=batch.model,
            errors=BatchErrors(data=errors) if errors else None,
            input_file_id=batch.input_file_id,
            status=batch.status,  # pyright: ignore[reportArgumentType] - one of them
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            created_at=int(batch.created_at),
            expires_at=int(batch.expires_at),
            request_counts=RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
            usage=_usage(batch),
            metadata=batch.batch_metadata,
            in_progress_at=_seconds(batch.in_progress_at),
            finalizing_at=_seconds(batch.finalizing_at),
            completed_at=_seconds(batch.completed_at),
            failed_at=_seconds(batch.failed_at),
            expired_at=_seconds(batch.expired_at),
            cancelling_at=_seconds(batch.cancelling_at),
            cancelled_at=_seconds(batch.cancelled_at),
        )


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)


def _usage(batch: Batch) -> BatchUsage:
    return BatchUsage(
        input_tokens=batch.input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=batch.cached_tokens),
        output_tokens=batch.output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=batch.reasoning_tokens),
        total_tokens=batch.input_tokens + batch.output_tokens,
    )

"""Usage on the wire, in the shape of OpenAI's usage API.

https://platform.openai.com/docs/api-reference/usage/completions
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from app.usage.models import Bucket

BucketWidth = Literal["1m", "1h", "1d"]


class UsageResult(BaseModel):
    """Sums of one bucket, or of one model in it."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    num_model_requests: int
    project_id: str
    model: str | None = None
    """Null unless grouped by model."""


class UsageBucket(BaseModel):
    """From `start_time` until before `end_time`."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[UsageResult]


class UsagePage(BaseModel):
    """Some buckets, oldest first."""

    object: Literal["page"] = "page"
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None

    @classmethod
    def of(cls, project_id: str, buckets: Sequence[Bucket], next_start: int | None) -> UsagePage:
        """The page as the API shows it."""
        data = [
            UsageBucket(
                start_time=bucket.start,
                end_time=bucket.end,
                results=[
                    UsageResult(
                        input_tokens=sums.input_tokens,
                        output_tokens=sums.output_tokens,
                        num_model_requests=sums.requests,
                        project_id=project_id,
                        model=model,
                    )
                    for model, sums in bucket.results
                ],
            )
            for bucket in buckets
        ]
        next_page = None if next_start is None else str(next_start)
        return cls(data=data, has_more=next_start is not None, next_page=next_page)

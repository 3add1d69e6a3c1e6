"""Usage on the wire, in the shape of OpenAI's usage API.

https://platform.openai.com/docs/api-reference/usage/completions
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from app.usage.models import Bucket

BucketWidth = Literal["1m", "1h", "1d"]
_LAST_SECOND = 253_402_300_799
"""The last second of the year 9999."""
Moment = Annotated[int, Field(ge=0, le=_LAST_SECOND, description="Unix seconds")]
GroupBy = Literal["model", "project_id", "api_key_id"]


class UsageQuery(BaseModel):
    """Which usage is asked for. OpenAI's client sends lists as `name[]`, others as `name`."""

    start_time: Moment
    end_time: Moment | None = None
    bucket_width: BucketWidth = "1d"
    group_by: list[GroupBy] | None = None
    group_by_in_brackets: Annotated[list[GroupBy] | None, Field(alias="group_by[]")] = None
    models: list[str] | None = None
    models_in_brackets: Annotated[list[str] | None, Field(alias="models[]")] = None
    aliases: Annotated[list[str] | None, Field(description="Only requests by these names")] = None
    aliases_in_brackets: Annotated[list[str] | None, Field(alias="aliases[]")] = None
    api_key_ids: list[str] | None = None
    api_key_ids_in_brackets: Annotated[list[str] | None, Field(alias="api_key_ids[]")] = None
    limit: Annotated[int | None, Field(ge=1)] = None
    page: Annotated[str | None, Field(pattern=r"^[0-9]{1,12}$", description="A `next_page`")] = None

    @property
    def start(self) -> int:
        """The first second that is asked for."""
        return self.start_time if self.page is None else int(self.page)

    @property
    def end(self) -> int:
        """The second after the last one that is asked for."""
        return int(time.time()) + 1 if self.end_time is None else self.end_time

    @property
    def groups(self) -> set[GroupBy]:
        """What the sums are wanted for each of."""
        return {*(self.group_by or ()), *(self.group_by_in_brackets or ())}

    @property
    def only_models(self) -> list[str]:
        """The models whose usage is asked for; none means all."""
        return [*(self.models or ()), *(self.models_in_brackets or ())]

    @property
    def only_aliases(self) -> list[str]:
        """The aliases whose usage is asked for; none means all requests."""
        return [*(self.aliases or ()), *(self.aliases_in_brackets or ())]

    @property
    def only_keys(self) -> list[str]:
        """The keys whose usage is asked for; none means all requests."""
        return [*(self.api_key_ids or ()), *(self.api_key_ids_in_brackets or ())]


def _refuse_unknown(value: object) -> None:
    if value is not None:
        reason = "usage is known by project, model and key only"
        raise PydanticCustomError("unsupported_parameter", "{reason}", {"reason": reason})


Unknown = Annotated[None, BeforeValidator(_refuse_unknown, json_schema_input_type=str | None)]


class OrganizationUsageQuery(UsageQuery):
    """Which usage of the whole deployment is asked for."""

    project_ids: list[str] | None = None
    project_ids_in_brackets: Annotated[list[str] | None, Field(alias="project_ids[]")] = None
    user_ids: Unknown = None
    user_ids_in_brackets: Annotated[Unknown, Field(alias="user_ids[]")] = None
    batch: Unknown = None

    @property
    def only_projects(self) -> list[str] | None:
        """The projects whose usage is asked for; None means all."""
        return [*(self.project_ids or ()), *(self.project_ids_in_brackets or ())] or None


class UsageResult(BaseModel):
    """The sums of one bucket, or of one project, model or key in it."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    num_model_requests: int
    project_id: str | None
    """Null in the usage of all projects, unless grouped by project."""
    model: str | None = None
    """Null unless grouped by model."""
    api_key_id: str | None = None
    """Null unless grouped by key, and for what the service asked itself, such as the requests of a batch."""


class UsageBucket(BaseModel):
    """The usage from `start_time` until before `end_time`."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[UsageResult]


class UsagePage(BaseModel):
    """A page of buckets, oldest first."""

    object: Literal["page"] = "page"
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None

    @classmethod
    def of(cls, buckets: Sequence[Bucket], next_start: int | None) -> UsagePage:
        """Return the page as the API shows it."""
        data = [
            UsageBucket(
                start_time=bucket.start,
                end_time=bucket.end,
                results=[
                    UsageResult(
                        input_tokens=sums.input_tokens,
                        output_tokens=sums.output_tokens,
                        num_model_requests=sums.requests,
                        project_id=group.project_id,
                        model=group.model,
                        api_key_id=group.api_key_id,
                    )
                    for group, sums in bucket.results
                ],
            )
            for bucket in buckets
        ]
        next_page = None if next_start is None else str(next_start)
        return cls(data=data, has_more=next_start is not None, next_page=next_page)

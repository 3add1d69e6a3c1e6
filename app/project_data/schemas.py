"""A project's quotas and how long its data is kept, on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.auth.models import Project

Days = Annotated[int, Field(ge=1, le=36_500, strict=True)]


class UpdateQuotas(BaseModel):
    """A request to change quotas: null removes one, and what is not named stays."""

    model_config = ConfigDict(extra="forbid")

    max_stored_bytes: Annotated[int, Field(ge=0, le=2**62, strict=True)] | None = None
    max_gpu_hours: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False, strict=True)] | None = None


class QuotasObject(BaseModel):
    """A project's quotas, and what it uses of them."""

    object: Literal["organization.project.quotas"] = "organization.project.quotas"
    project_id: str
    max_stored_bytes: int | None
    """Null means any number."""
    stored_bytes: int
    """Files, what open uploads have announced, and models with their checkpoints."""
    max_gpu_hours: float | None
    """Of a calendar month (UTC); null means any number."""
    gpu_hours: float
    """Since the month began."""


class Retention(BaseModel):
    """The days for which a project's data is kept, by kind; null means until somebody deletes it."""

    model_config = ConfigDict(extra="forbid")

    files: Days | None = None
    """Uploaded files, from when they were uploaded."""
    outputs: Days | None = None
    """The output and error files of batches."""
    checkpoints: Days | None = None
    """Checkpoints of jobs that have ended; their models stay."""
    logs: Days | None = None
    """The events of jobs, from when these have ended."""


class RetentionObject(Retention):
    """How long a project's data is kept."""

    object: Literal["organization.project.retention"] = "organization.project.retention"
    project_id: str

    @classmethod
    def of(cls, project: Project) -> RetentionObject:
        """Return a project's retention as the API shows it."""
        return cls(project_id=project.id, **(project.retention_days or {}))

"""Models on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.adapters.models import Adapter
from app.fine_tuning.schemas import Suffix
from app.settings import BaseModelEntry


class ModelObject(BaseModel):
    """OpenAI's model object, and what a base or an adapter is made of."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    base_model: str | None = None
    """The base that an adapter sits on; null for a base model."""
    fine_tuning_job_id: str | None = None
    """Null for a base model, and for an adapter that was imported."""
    quarantine_reason: str | None = None
    """Why it is not served any more; null where it is."""

    @classmethod
    def of_base(cls, entry: BaseModelEntry) -> ModelObject:
        """A line of the catalogue as the API shows it."""
        return cls(id=entry.name, created=0, owned_by="toque")

    @classmethod
    def of_adapter(cls, adapter: Adapter) -> ModelObject:
        """An adapter as the API shows it."""
        return cls(
            id=adapter.name,
            created=int(adapter.created_at),
            owned_by=adapter.project_id,
            base_model=adapter.base_model,
            fine_tuning_job_id=adapter.job_id,
            quarantine_reason=adapter.quarantine_reason,
        )


class ImportAdapter(BaseModel):
    """What a request to import says beside the two files."""

    model_config = ConfigDict(extra="forbid")

    base_model: str
    suffix: Suffix | None = None


class ModelList(BaseModel):
    """Every model that the project can use."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    """Says that a model is gone."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True

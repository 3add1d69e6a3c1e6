"""Models on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from app.adapters.models import Adapter
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
        )


class ModelList(BaseModel):
    """Every model that the project can use."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    """Says that a model is gone."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True

"""Models on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from app.core.settings import BaseModelEntry
from app.models.adapters.models import Adapter

Suffix = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
]


class Parity(BaseModel):
    """How near an engine's answers were to the trainer's, on a few training examples; in nats."""

    tokens: int
    """Answer tokens that were compared."""
    distance: float
    """Mean absolute difference of their log-probabilities, served to trained."""
    base_distance: float
    """The same of the base model alone: what rounding makes."""
    effect: float
    """The same between the trained model and its base: what training changed."""
    tolerance: float
    """What `distance` may be at most."""


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
    parent: str | None = None
    """The fine-tuned model that its training went on from; null where it began with the base."""
    lineage: list[str] | None = None
    """From the base to this model, each trained from the one before, deleted or not; null in a list."""
    quarantine_reason: str | None = None
    """Why it is not served any more; null where it is."""
    parity: Parity | None = None
    """Null for a base model, an import, a checkpoint, and a model that was not compared (yet)."""

    @classmethod
    def of_base(cls, entry: BaseModelEntry) -> ModelObject:
        """A line of the catalogue as the API shows it."""
        return cls(id=entry.name, created=0, owned_by="toque")

    @classmethod
    def of_adapter(cls, adapter: Adapter, lineage: list[str] | None = None) -> ModelObject:
        """An adapter as the API shows it."""
        return cls(
            id=adapter.name,
            created=int(adapter.created_at),
            owned_by=adapter.project_id,
            base_model=adapter.base_model,
            fine_tuning_job_id=adapter.job_id,
            parent=adapter.parent,
            lineage=lineage,
            quarantine_reason=adapter.quarantine_reason,
            # Without tokens: there was nothing to compare.
            parity=Parity.model_validate(adapter.parity) if (adapter.parity or {}).get("tokens") else None,
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

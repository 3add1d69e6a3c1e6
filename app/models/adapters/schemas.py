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
    """How close an engine's answers were to the trainer's on a few training examples, in nats."""

    tokens: int
    """The number of answer tokens that were compared."""
    distance: float
    """The mean absolute difference of their log-probabilities between the engine and the trainer."""
    base_distance: float
    """The same difference for the base model alone, which is due to rounding."""
    effect: float
    """The same difference between the trained model and its base, which is due to training."""
    tolerance: float
    """The largest `distance` that is accepted."""


class ModelObject(BaseModel):
    """OpenAI's model object, with where a base model or an adapter comes from."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    base_model: str | None = None
    """The base model of an adapter; null for a base model."""
    fine_tuning_job_id: str | None = None
    """The job that trained it; null for a base model, and for an adapter that was imported."""
    parent: str | None = None
    """The fine-tuned model that its training continued from; null if it began with the base model."""
    lineage: list[str] | None = None
    """The models from the base model to this one, each trained from the one before; null in a list."""
    target_modules: list[str] | None = None
    """The modules that an adapter has weights for; only given where a single adapter is retrieved."""
    experts_adapted: bool | None = None
    """Whether the adapter changes its base model's experts; given as above. Null if that has none, or if its
    weights are not where the API runs; the job's events tell, too."""
    quantization: str | None = None
    """How the base model was quantized while the adapter was trained; null if it was not."""
    quarantine_reason: str | None = None
    """Why it is not served; null if it is."""
    parity: Parity | None = None
    """The parity check; null for a base model, an import, a checkpoint, and a model not compared yet."""

    @classmethod
    def of_base(cls, entry: BaseModelEntry, added_at: float) -> ModelObject:
        """Return an entry of the catalogue, since when it has been there, as the API shows it."""
        return cls(id=entry.name, created=int(added_at), owned_by="toque")

    @classmethod
    def of_adapter(cls, adapter: Adapter, lineage: list[str] | None = None) -> ModelObject:
        """Return an adapter as the API shows it."""
        return cls(
            id=adapter.name,
            created=int(adapter.created_at),
            owned_by=adapter.project_id,
            base_model=adapter.base_model,
            fine_tuning_job_id=adapter.job_id,
            parent=adapter.parent,
            lineage=lineage,
            quantization=adapter.quantization,
            quarantine_reason=adapter.quarantine_reason,
            # Without tokens: there was nothing to compare.
            parity=Parity.model_validate(adapter.parity) if (adapter.parity or {}).get("tokens") else None,
        )


class ImportAdapter(BaseModel):
    """The fields of a request to import an adapter, beside its two files."""

    model_config = ConfigDict(extra="forbid")

    base_model: str
    suffix: Suffix | None = None


class ModelList(BaseModel):
    """Every model that the project can use."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    """The confirmation that a model was deleted."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True

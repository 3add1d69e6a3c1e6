"""Promotions on the wire: what is asked for, the rules of the gate, and what they came to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import ConflictError, ErrorBody
from app.models.aliases.schemas import ComparisonId, ModelName, Reason, ShareObject, Version

Opponent = Literal["base", "prompted", "current"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]


class Beats(BaseModel):
    """To be better than others on the same questions, by more than `delta`, at 95 %."""

    model_config = ConfigDict(extra="forbid")

    candidate: Opponent
    """The base as it is; every prompted one; or the models that the alias points to."""
    delta: Annotated[Share, Field(lt=1)] = 0.0
    """Of score: the lower end of the difference's interval must be above it."""


class Rules(BaseModel):
    """What must hold; one rule at least."""

    model_config = ConfigDict(extra="forbid")

    min_score: Share | None = None
    beats: Annotated[list[Beats | Opponent], Field(max_length=3)] = []
    max_latency_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = None
    """Of the median latency to the base's in the same comparison."""
    max_regression: Share | None = None
    """What it may lose against its base on the comparison's general questions."""


class PromoteModel(BaseModel):
    """A request to point an alias to a model, if a comparison says that the model deserves it."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName
    comparison: ComparisonId
    rules: Rules
    dry_run: bool = False
    """Only says what the rules come to."""
    version: Version | None = None
    """The alias's version that is to be replaced; absent where it is to be created, or in a dry run."""
    reason: Reason | None = None


class RuleResult(BaseModel):
    """What one rule came to."""

    rule: str
    """As `min_score` or `beats:prompted`."""
    passed: bool
    required: float
    actual: float | None
    """None where there is nothing to measure."""
    p: float | None = None
    """Of `beats` alone: the paired test's, corrected (Holm) for the rule's opponents; 0.05 at most."""
    sentence: str


class PromotionObject(BaseModel):
    """What a gate said, and whether the alias was moved."""

    object: Literal["alias.promotion"] = "alias.promotion"
    alias: str
    model: str
    comparison: str
    passed: bool
    """Whether every rule holds."""
    promoted: bool
    """False in a dry run."""
    dry_run: bool
    version: int | None
    """The alias's, now; null where it is not there."""
    split: list[ShareObject]
    """Where the alias points now."""
    rules: list[RuleResult]


class GateErrorBody(ErrorBody):
    """A refusal with each rule's figure."""

    rules: list[RuleResult]


class GateErrorResponse(BaseModel):
    """The answer of a gate that said no."""

    error: GateErrorBody


class GateRefusedError(ConflictError):
    """409: at least one rule does not hold, and the alias stays where it is."""

    def __init__(self, message: str, rules: list[RuleResult]) -> None:
        super().__init__(message, code="gate_refused", param="rules")
        self.body = GateErrorBody(**self.body.model_dump(), rules=rules)

"""Promotions on the wire: the request, the rules of the gate, and their results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.comparisons.results import Interval
from app.core.errors import ConflictError, ErrorBody
from app.models.aliases.schemas import ComparisonId, ModelName, Reason, ShareObject, Version

Opponent = Literal["base", "prompted", "current"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]


class Beats(BaseModel):
    """The rule to be better than others on the same questions by more than `delta`, at 95 % confidence."""

    model_config = ConfigDict(extra="forbid")

    candidate: Opponent
    """The opponents: the base model as it is, every prompted candidate, or the models the alias points to."""
    delta: Annotated[Share, Field(lt=1)] = 0.0
    """The margin in score: the lower end of the difference's interval must be above it."""


class Rules(BaseModel):
    """The rules that must hold; there is at least one."""

    model_config = ConfigDict(extra="forbid")

    min_score: Share | None = None
    beats: Annotated[list[Beats | Opponent], Field(max_length=3)] = []
    max_latency_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = None
    """The largest ratio of the median latency to the base model's in the same comparison."""
    max_regression: Share | None = None
    """The most that it may lose against its base model on the comparison's general questions."""


class PromoteModel(BaseModel):
    """A request to point an alias to a model, if a comparison says that the model deserves it."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName
    comparison: ComparisonId
    rules: Rules
    dry_run: bool = False
    """Whether to evaluate the rules without moving the alias."""
    version: Version | None = None
    """The alias's version to replace; absent if the alias is to be created, or in a dry run."""
    reason: Reason | None = None


class RuleResult(BaseModel):
    """The result of one rule."""

    rule: str
    """The rule's name, such as `min_score` or `beats:prompted`."""
    passed: bool
    required: float
    actual: float | None
    """The measured value; None if there is nothing to measure."""
    interval: Interval | None = None
    """The 95 % interval of what was measured: of the score, of the difference for `beats`, or of the loss."""
    p: float | None = None
    """The p-value of `beats`: of the paired test, Holm-corrected for the rule's opponents; at most 0.05."""
    sentence: str


class PromotionObject(BaseModel):
    """The results of a gate's rules, and whether the alias was moved."""

    object: Literal["alias.promotion"] = "alias.promotion"
    alias: str
    model: str
    comparison: str
    passed: bool
    """Whether every rule holds."""
    promoted: bool
    """Whether the alias was moved; false in a dry run."""
    dry_run: bool
    version: int | None
    """The alias's version now; null if there is no alias."""
    split: list[ShareObject]
    """The models that the alias points to now."""
    rules: list[RuleResult]


class GateErrorBody(ErrorBody):
    """A refusal with the figure of each rule."""

    rules: list[RuleResult]


class GateErrorResponse(BaseModel):
    """The response of a gate that refuses."""

    error: GateErrorBody


class GateRefusedError(ConflictError):
    """409: at least one rule does not hold, so the alias stays where it is."""

    def __init__(self, message: str, rules: list[RuleResult]) -> None:
        super().__init__(message, code="gate_refused", param="rules")
        self.body = GateErrorBody(**self.body.model_dump(), rules=rules)

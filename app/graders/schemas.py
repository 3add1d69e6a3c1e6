"""`/v1/fine_tuning/alpha/graders`: what is sent and received."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, cast

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.comparisons.graders.openai_grader import OpenAIGrader
from app.comparisons.graders.template import MAX_TEMPLATE

MAX_ITEM_BYTES = 256 * 2**10
MAX_ITEM_DEPTH = 100


def _is_bounded(item: dict[str, Any]) -> dict[str, Any]:
    """Bound an item, so that nothing that is made of it takes long or cannot be written as JSON."""
    level: list[Any] = [item]
    for _ in range(MAX_ITEM_DEPTH):
        level = [value for node in level for value in _values(node)]
    if level:
        raise PydanticCustomError("item", "is nested more than {most} deep", {"most": MAX_ITEM_DEPTH})
    try:
        size = len(msgspec.json.encode(item))
    except (UnicodeError, msgspec.MsgspecError, OverflowError) as error:
        raise PydanticCustomError("item", "cannot be written as JSON: {why}", {"why": str(error)}) from None
    if size > MAX_ITEM_BYTES:
        raise PydanticCustomError("item", "is larger than {most} bytes", {"most": f"{MAX_ITEM_BYTES:,}"})
    return item


def _values(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return cast("dict[str, Any]", node).values()
    return cast("list[Any]", node) if isinstance(node, list) else ()


class ValidateGrader(BaseModel):
    """A grader to check."""

    model_config = ConfigDict(extra="forbid")

    grader: OpenAIGrader


class ValidatedGrader(BaseModel):
    """A grader that can be used, as it was sent."""

    grader: OpenAIGrader


class RunGrader(BaseModel):
    """A grader, and an answer for it."""

    model_config = ConfigDict(extra="forbid")

    grader: OpenAIGrader
    item: Annotated[dict[str, Any], AfterValidator(_is_bounded)] = {}
    """What templates call `item`: a line of a dataset."""
    model_sample: Annotated[str, Field(max_length=MAX_TEMPLATE)]
    """The answer, which templates call `sample`."""


class GraderErrors(BaseModel):
    """Why there is no reward. What has `python` in its name never happens here."""

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None


class TokenUsage(BaseModel):
    """The tokens that a judge read and wrote."""

    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class GraderMetadata(BaseModel):
    """How the reward came about."""

    name: str
    type: str
    errors: GraderErrors
    execution_time: float
    """In seconds."""
    scores: dict[str, float]
    """The rewards of the graders that a `multi` grader combines, by their names."""
    token_usage: int | None
    sampled_model_name: str | None
    """The model that judged, if one did, under its own name."""


class GraderRun(BaseModel):
    """The reward of an answer; 0 if one of the errors is true."""

    reward: float
    metadata: GraderMetadata
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, TokenUsage]

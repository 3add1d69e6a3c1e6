"""OpenAI's `score_model` grader."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.base import Grade
from app.comparisons.graders.judged_grader import JudgedGrader

MAX_REPLY_TOKENS = 4096
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9, strict=True)]


class SamplingParams(BaseModel):
    """How the judge is sampled; by default at temperature 0, so that a grade can be had again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False, strict=True)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1, le=MAX_REPLY_TOKENS, strict=True)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


def _two_in_order(scale: tuple[float, ...]) -> tuple[float, ...]:
    if len(scale) != 2 or scale[0] >= scale[1]:
        raise PydanticCustomError("range", "needs two numbers, the lower one first", {})
    return scale


class ScoreModel(JudgedGrader):
    """Gives the score that a model gives."""

    type: Literal["score_model"]
    sampling_params: SamplingParams | None = None
    range: Annotated[tuple[Finite, ...], Field(max_length=2), AfterValidator(_two_in_order)] = (0.0, 1.0)

    @override
    def result_schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.range[0], "maximum": self.range[1]}

    @override
    def parameters(self) -> dict[str, Any]:
        chosen = self.sampling_params.model_dump(exclude_none=True) if self.sampling_params else {}
        if (most := chosen.pop("max_completions_tokens", None)) is not None:
            chosen["max_tokens"] = most
        return chosen

    @override
    def grade_result(self, result: Any) -> Grade | None:
        lowest, highest = self.range
        if isinstance(result, bool) or not isinstance(result, int | float) or not lowest <= result <= highest:
            return None
        score = (result - lowest) / (highest - lowest)
        return Grade(score, f"the judge gave {result:g}", reward=float(result))

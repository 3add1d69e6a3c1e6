"""The graders that combine others: `all`, `any` and `weighted`. They may be nested."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.base import MAX_WEIGHT, Grade, Grader, JudgeRequest
from app.comparisons.questions import Question

if TYPE_CHECKING:
    # For pydantic it is the union of all graders, which only the registry can know.
    AnyGrader = Grader

MAX_GRADERS = 20


class Combination(Grader):
    """A grader made of others."""

    graders: list[AnyGrader] = Field(min_length=1, max_length=MAX_GRADERS)

    @abstractmethod
    def combine(self, scores: Sequence[float]) -> float:
        """Return the score that follows from the scores of `graders`, in their order."""

    @override
    def grade(
        self,
        question: Question,
        answer: str,
        replies: Sequence[str | None] = (),
        tool_calls: Sequence[dict[str, Any]] = (),
    ) -> Grade:
        grades: list[Grade] = []
        for part in self.graders:
            count = len(part.judge_requests(question, answer, tool_calls))
            grades.append(part.grade(question, answer, replies[:count], tool_calls))
            replies = replies[count:]
        detail = "; ".join(
            f"{part.type} {'failed' if grade.score is None else format(grade.score, '.3g')}"
            + (f" ({grade.detail})" if grade.detail else "")
            for part, grade in zip(self.graders, grades, strict=True)
        )
        scores = [grade.score for grade in grades if grade.score is not None]
        return Grade(self.combine(scores) if len(scores) == len(grades) else None, detail)

    @override
    def check_fits(self, questions: Sequence[Question], *, param: str = "grader") -> None:
        for position, part in enumerate(self.graders):
            part.check_fits(questions, param=f"{param}.graders[{position}]")

    @property
    @override
    def has_judges(self) -> bool:
        return any(part.has_judges for part in self.graders)

    @override
    def judge_requests(
        self, question: Question, answer: str, tool_calls: Sequence[dict[str, Any]] = ()
    ) -> list[JudgeRequest]:
        return [
            request for part in self.graders for request in part.judge_requests(question, answer, tool_calls)
        ]


class AllOf(Combination):
    """Gives the lowest of its graders' scores: 1 if every one of them gives 1."""

    type: Literal["all"] = "all"

    @override
    def combine(self, scores: Sequence[float]) -> float:
        return min(scores)


class AnyOf(Combination):
    """Gives the highest of its graders' scores: 1 if one of them gives 1."""

    type: Literal["any"] = "any"

    @override
    def combine(self, scores: Sequence[float]) -> float:
        return max(scores)


class Weighted(Combination):
    """Gives the weighted mean of its graders' scores."""

    type: Literal["weighted"] = "weighted"
    weights: list[Annotated[float, Field(gt=0, le=MAX_WEIGHT, allow_inf_nan=False)]]

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if len(self.weights) != len(self.graders):
            raise PydanticCustomError("weights", "needs one weight for each grader", {})
        return self

    @override
    def combine(self, scores: Sequence[float]) -> float:
        total = sum(weight * score for weight, score in zip(self.weights, scores, strict=True))
        return min(1.0, total / sum(self.weights))

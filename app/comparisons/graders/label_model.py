"""OpenAI's `label_model` grader."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from app.comparisons.graders.base import Grade, binary_grade
from app.comparisons.graders.judged_grader import JudgedGrader

MAX_LABELS = 100
MAX_LABELS_BYTES = 32 * 2**10
"""Bytes of all labels as JSON: they become a part of the schema that the judge's reply has to match."""
Label = Annotated[str, Field(min_length=1, max_length=200)]


class LabelModel(JudgedGrader):
    """Gives 1 if the label that a model chooses is one of the passing labels."""

    type: Literal["label_model"]
    labels: list[Label] = Field(min_length=1, max_length=MAX_LABELS)
    passing_labels: list[Label] = Field(min_length=1, max_length=MAX_LABELS)

    @field_validator("labels")
    @classmethod
    def _labels_are_bounded(cls, labels: list[str]) -> list[str]:
        if len(msgspec.json.encode(labels)) > MAX_LABELS_BYTES:
            most = f"{MAX_LABELS_BYTES:,}"
            raise PydanticCustomError("labels", "are larger than {most} bytes together", {"most": most})
        return labels

    @field_validator("passing_labels")
    @classmethod
    def _passing_labels_are_labels(cls, passing: list[str], fields: ValidationInfo) -> list[str]:
        if unknown := sorted(set(passing) - set(fields.data.get("labels", passing))):
            raise PydanticCustomError("labels", "{label} is not in 'labels'", {"label": repr(unknown[0])})
        return passing

    @override
    def result_schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": self.labels}

    @override
    def grade_result(self, result: Any) -> Grade | None:
        if result not in self.labels:
            return None
        grade = binary_grade(result in self.passing_labels)
        return Grade(grade.score, f"the judge chose {result!r}")
